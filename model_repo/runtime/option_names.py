"""Names of options that clients of TensorRT-LLM's and vLLM's backends send, beside those that do something here.

A client that spells out its defaults must not be refused, and one that asks for what this engine does not do
must not be served something else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from mm2c_runtime.option_values import boolean, integer, invalid, number, scalar

# Other names of the options of ``options.Options``.
ALIASES = {
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "request_output_len": "max_tokens",
    "min_length": "min_tokens",
    "random_seed": "seed",
    "stop_words": "stop",
    "streaming": "stream",
    "exclude_input_in_output": "echo",
    "return_log_probs": "logprobs",
    "return_logprobs": "logprobs",
}


def names_of(option: str) -> tuple[str, ...]:
    """Every name under which ``option`` may be given."""
    return (option, *(alias for alias, name in ALIASES.items() if name == option))


# Which outputs a response has: for the Triton models alone. Here every event has all of them.
LAYOUT = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens", "return_token_ids")

# Accepted and without effect: every response has these outputs, rows are never padded, and text is joined
# byte by byte, without spaces of its own.
_WITHOUT_EFFECT: dict[str, Callable[[str, Any], Any]] = {
    "pad_id": integer,
    **dict.fromkeys(LAYOUT, boolean),
    "spaces_between_special_tokens": boolean,
}


class _Fixed(NamedTuple):
    """An option with the values that describe what this engine does, and why there are no others."""

    read: Callable[[str, Any], Any]
    neutral: tuple[Any, ...]
    reason: str


_ONE_ANSWER = "a request has one answer"
_NO_BEAMS = "there is no beam search"
_NO_DECAY = "top_p does not change within an answer"
_NO_TENSORS = "it is not returned"

_FIXED = {
    "n": _Fixed(integer, (1,), _ONE_ANSWER),
    "best_of": _Fixed(integer, (1,), _ONE_ANSWER),
    "num_return_sequences": _Fixed(integer, (1,), _ONE_ANSWER),
    "beam_width": _Fixed(integer, (1,), _NO_BEAMS),
    "use_beam_search": _Fixed(boolean, (False,), _NO_BEAMS),
    "length_penalty": _Fixed(number, (1.0, 0.0), _NO_BEAMS),
    "early_stopping": _Fixed(boolean, (False,), _NO_BEAMS),
    "beam_search_diversity_rate": _Fixed(number, (0.0,), _NO_BEAMS),
    "top_p_decay": _Fixed(number, (1.0, 0.0), _NO_DECAY),
    "top_p_min": _Fixed(number, (1e-6, 0.0), _NO_DECAY),
    "top_p_reset_ids": _Fixed(integer, (-1,), _NO_DECAY),
    "no_repeat_ngram_size": _Fixed(integer, (0, 1 << 30), "use repetition_penalty or frequency_penalty"),
    "num_draft_tokens": _Fixed(integer, (0,), "there is no speculative decoding"),
    "use_draft_logits": _Fixed(boolean, (False,), "there is no speculative decoding"),
    "lora_task_id": _Fixed(integer, (0,), "there are no LoRA adapters"),
    "prompt_vocab_size": _Fixed(integer, (0,), "there is no prompt tuning"),
    "return_context_logits": _Fixed(boolean, (False,), _NO_TENSORS),
    "return_generation_logits": _Fixed(boolean, (False,), _NO_TENSORS),
    "return_perf_metrics": _Fixed(boolean, (False,), _NO_TENSORS),
    "return_kv_cache_reuse_stats": _Fixed(boolean, (False,), _NO_TENSORS),
    "return_cumulative_logprob": _Fixed(boolean, (False,), "ask for logprobs and add them"),
    "flat_logprobs": _Fixed(boolean, (False,), "logprobs come as one object a token"),
    "detokenize": _Fixed(boolean, (True,), "the answer is text"),
    "skip_special_tokens": _Fixed(boolean, (True,), "special tokens have no text"),
    "include_stop_str_in_output": _Fixed(boolean, (False,), "the text ends before the stop string"),
}

# Refused unless empty.
_ABSENT = {
    "allowed_token_ids": "sampling is not restricted to a list of tokens; bad_words forbids words",
    "decoder_text_input": "the model has no encoder",
    "embedding_bias_weights": "logits are not biased by word",
    "embedding_bias_words": "logits are not biased by word",
    "guided_decoding": "send guided_decoding_guide_type and guided_decoding_guide",
    "image": "the model reads text only",
    "image_input": "the model reads text only",
    "logit_bias": "logits are not biased by token; bad_words forbids words",
    "logits_processors": "no code of a request is run",
    "lora_config": "there are no LoRA adapters",
    "lora_weights": "there are no LoRA adapters",
    "prompt_embedding_table": "there is no prompt tuning",
    "prompt_logprobs": "log probabilities are of generated tokens only",
    "truncate_prompt_tokens": "a prompt is never cut; send a shorter one",
}

NEUTRAL = frozenset([*_WITHOUT_EFFECT, *_FIXED, *_ABSENT])


def accept_neutral(name: str, value: Any) -> bool:
    """Whether ``name`` is an option without effect here. Raises RequestError INVALID_ARGUMENT, with the
    reason, where its value asks for an effect."""
    if name in _WITHOUT_EFFECT:
        _WITHOUT_EFFECT[name](name, value)
    elif name in _FIXED:
        read, neutral, reason = _FIXED[name]
        found = read(name, value)
        if found not in neutral and not (
            isinstance(found, float) and any(_close(found, one) for one in neutral)
        ):
            only = " or ".join(json.dumps(one) for one in neutral)
            raise invalid(f"{name}: {json.dumps(found)} is not supported, only {only}: {reason}")
    elif name in _ABSENT:
        if not _empty(name, value):
            raise invalid(f"{name}: is not supported: {_ABSENT[name]}")
    else:
        return False
    return True


def _close(found: float, neutral: float) -> bool:
    """The same number, had it been a 32-bit float on its way."""
    return abs(found - neutral) <= 1e-7 * abs(neutral)


def _empty(name: str, value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_empty(name, one) for one in value)
    return scalar(name, value) in (None, "", "null", "{}", "[]") or value is False or value == {}
