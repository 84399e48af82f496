"""``POST /v1/completions``: what of a request the front reads itself, and what the engine is sent.

| field | here |
|---|---|
| ``prompt`` | a string, or a list of strings, each with ``n`` choices; token ids are refused |
| ``max_tokens`` | 16 where it is left out, as OpenAI has it |
| ``logprobs`` | 0 to 20 alternatives a token, in the shape of the old API |
| ``echo`` | the prompt before the answer; not with ``logprobs``, which are of generated tokens only |
| ``suffix`` | refused: the model does not fill in |
| ``best_of`` | 1 |
| ``n``, ``seed``, ``stream``, ``stream_options``, sampling, guides | as for chat |

A raw prompt is not parsed: reasoning and tool calls stay in the text.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mm2c_runtime.openai.chat_request import MAX_CHOICES, StreamOptions
from mm2c_runtime.openai.errors import invalid
from mm2c_runtime.openai.fields import (
    GUIDES,
    SAMPLING,
    check_names,
    model_inputs,
    options,
    plain,
    read_model,
    seeded,
)

DEFAULT_MAX_TOKENS = 16
MAX_GENERATIONS = 1024  # of one request: prompts times n
_TEXT = ("guided_decoding_guide_type", "guided_decoding_guide")
_JSON = ("response_format", "structured_outputs")
_TOKENS = "prompt: token ids are not supported, send the text"


class CompletionRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())
    model: str | None = None
    prompt: Any
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    best_of: int | None = None
    echo: bool = False
    suffix: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def usage_wanted(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


_NAMES = frozenset((*CompletionRequest.model_fields, *SAMPLING, *_TEXT, *_JSON, *GUIDES))


def read_completion(body: dict[str, Any]) -> CompletionRequest:
    """Raises ApiError 400 naming the field."""
    check_names(body, _NAMES)
    asked: CompletionRequest = read_model(CompletionRequest, body)
    _check_prompt(asked.prompt)
    if asked.stream_options is not None and not asked.stream:
        raise invalid("stream_options: is only allowed with stream=true", "stream_options")
    if asked.suffix:
        raise invalid("suffix: is not supported: the model does not fill in", "suffix")
    if asked.best_of not in (None, 1):
        raise invalid("best_of: is not supported beyond 1: ask for n answers and choose", "best_of")
    if asked.echo and asked.logprobs is not None:
        raise invalid("echo: cannot be combined with logprobs, which are of generated tokens only", "echo")
    if len(asked.prompts) * asked.n > MAX_GENERATIONS:
        many = f"{len(asked.prompts)} prompts with n={asked.n}"
        raise invalid(f"prompt: {many} are more than {MAX_GENERATIONS} answers", "prompt")
    return asked


def engine_inputs(asked: CompletionRequest, body: dict[str, Any]) -> list[dict[str, str | bool]]:
    """The inputs of the model for every choice: the first prompt's, then the second's, …"""
    inputs = model_inputs(body, _TEXT, _JSON)
    inputs["stream"] = asked.stream
    sampling = {"max_tokens": DEFAULT_MAX_TOKENS, **options(body, SAMPLING)}
    if asked.logprobs is not None:
        sampling["logprobs"] = asked.logprobs
    own = [seeded(sampling, asked.seed, choice) for choice in range(asked.n)]
    return [
        {**inputs, "text_input": prompt, "sampling_parameters": parameters}
        for prompt in asked.prompts
        for parameters in own
    ]


def _check_prompt(prompt: Any) -> None:
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list):
        raise invalid("prompt: must be a string or a list of strings", "prompt")
    if not prompts:
        raise invalid("prompt: is an empty list", "prompt")
    for one in prompts:
        if isinstance(one, (int, list)):
            raise invalid(_TOKENS, "prompt")
        if not isinstance(one, str):
            raise invalid("prompt: must be a string or a list of strings", "prompt")
        if not one:
            raise invalid("prompt: is empty", "prompt")
        plain("prompt", one)
