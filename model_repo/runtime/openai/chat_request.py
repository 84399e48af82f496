"""``POST /v1/chat/completions``: what of a request the front reads itself, and what the engine is sent.

| field | here |
|---|---|
| ``model`` | one of the served names; the first where it is left out |
| ``messages``, ``tools`` | as they are: the engine cleans history, ``reasoning_content`` included |
| ``tool_choice``, ``parallel_tool_calls``, ``response_format`` | as they are, enforced by mask in the engine |
| ``structured_outputs`` (vLLM), ``guided_decoding_guide_type`` and ``_guide`` (TensorRT-LLM) | the same |
| ``n`` | that many generations side by side; ``seed`` + i is choice i's |
| ``seed`` | any 64-bit integer; a negative one counts modulo 2⁶⁴ |
| ``max_completion_tokens``, ``max_tokens`` | one option; without it the rest of the context |
| ``temperature``, ``top_p``, ``presence_penalty``, ``frequency_penalty``, ``stop`` | options of the engine |
| ``top_k``, ``min_p``, ``repetition_penalty``, ``min_tokens``, ``ignore_eos`` | the same, beyond OpenAI's |
| ``stop_token_ids``, ``bad_words``, ``end_id``, ``priority``, ``timeout`` (seconds) | the same |
| ``chat_template_kwargs`` | variables of the template |
| ``skip_reasoning`` | the answer begins without reasoning |
| ``reasoning_effort`` | ``none`` is ``skip_reasoning``; M2 has no levels, so every other value has no effect |
| ``logprobs``, ``top_logprobs`` | the model's own, 0 to 20 alternatives a token |
| ``stream``, ``stream_options`` | server-sent events; ``include_usage`` adds a last chunk with the counts |
| ``modalities`` | ``["text"]`` |

Fields without effect, and refused ones, stand in ``fields``.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mm2c_runtime.openai.errors import invalid
from mm2c_runtime.openai.fields import (
    GUIDES,
    SAMPLING,
    check_names,
    model_inputs,
    options,
    read_model,
    seeded,
)

MAX_CHOICES = 128
_TEXT = ("tool_choice", "guided_decoding_guide_type", "guided_decoding_guide")
_JSON = ("messages", "tools", "response_format", "structured_outputs", "chat_template_kwargs")
_SAMPLING = (*SAMPLING, "max_completion_tokens")


class StreamOptions(BaseModel):
    """``include_obfuscation`` has no effect: chunks are not padded."""

    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())
    model: str | None = None
    messages: list[Any]
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    reasoning_effort: str | None = None
    skip_reasoning: bool | None = None

    @property
    def usage_wanted(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def skips_reasoning(self) -> bool:
        if self.skip_reasoning is not None:
            return self.skip_reasoning
        return self.reasoning_effort == "none"


_NAMES = frozenset((*ChatRequest.model_fields, *_SAMPLING, *_TEXT, *_JSON, *GUIDES))


def read_chat(body: dict[str, Any]) -> ChatRequest:
    """Raises ApiError 400 naming the field."""
    check_names(body, _NAMES)
    asked: ChatRequest = read_model(ChatRequest, body)
    if asked.stream_options is not None and not asked.stream:
        raise invalid("stream_options: is only allowed with stream=true", "stream_options")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise invalid("top_logprobs: needs logprobs=true", "top_logprobs")
    if asked.modalities not in (None, ["text"], []):
        raise invalid("modalities: the model writes text only", "modalities", "unsupported_value")
    return asked


def engine_inputs(asked: ChatRequest, body: dict[str, Any]) -> list[dict[str, str | bool]]:
    """The inputs of the model for every choice."""
    inputs = model_inputs(body, _TEXT, _JSON)
    inputs["stream"] = asked.stream
    if asked.parallel_tool_calls is not None:
        inputs["parallel_tool_calls"] = asked.parallel_tool_calls
    if asked.skips_reasoning:
        inputs["skip_reasoning"] = True
    sampling = options(body, _SAMPLING)
    if asked.logprobs:
        sampling["logprobs"] = asked.top_logprobs or 0
    return [
        {**inputs, "sampling_parameters": seeded(sampling, asked.seed, choice)} for choice in range(asked.n)
    ]
