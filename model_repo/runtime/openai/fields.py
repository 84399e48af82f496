"""The fields of a request by what becomes of them.

| fields | what becomes of them |
|---|---|
| messages, tools, guides, … | inputs of the Triton model, as text or JSON; checked by the engine |
| ``SAMPLING`` | options of the engine under its own names, sent as one JSON object; checked by the engine |
| ``PASSED_ON`` | the engine takes the value that says what it does anyway, and refuses others with the reason |
| ``WITHOUT_EFFECT`` | accepted; there is nothing here that they could change |
| ``REFUSED`` | refused with the reason, unless empty |
| anything else | refused by name; a null counts as absent |

The rest of a request's fields are read here in the front, and stand in its models (``chat_request``,
``completion_request``).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from mm2c_runtime.errors import RequestError
from mm2c_runtime.json_input import check_text
from mm2c_runtime.openai.errors import invalid
from mm2c_runtime.option_names import LAYOUT, NEUTRAL

SAMPLING = (
    "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "stop", "stop_token_ids", "bad_words", "ignore_eos", "end_id",
    "priority", "timeout",
)  # fmt: skip
GUIDES = ("guided_decoding_guide_type", "guided_decoding_guide", "structured_outputs")

WITHOUT_EFFECT = frozenset(
    (
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_retention", "verbosity", "request_id", "cache_salt",
    )
)  # fmt: skip

_SCHEMA = 'send structured_outputs, or response_format {"type": "json_schema", …}'
REFUSED = {
    "function_call": "send tool_choice, which has replaced it",
    "functions": "send tools, which have replaced them",
    "audio": "the model writes text only",
    "prediction": "there are no predicted outputs; leave it out, the answer is the same",
    "web_search_options": "there is no web search; send a tool of your own",
    "documents": "put documents into the messages",
    "chat_template": "the template is the bundle's own; no code of a request is run",
    "mm_processor_kwargs": "the model reads text only",
    "guided_json": _SCHEMA,
    "guided_regex": "send structured_outputs {\"regex\": …}",
    "guided_choice": "send structured_outputs {\"choice\": […]}",
    "guided_grammar": "send structured_outputs {\"grammar\": …}",
}  # fmt: skip
# Neutral names of the engine that are this front's own business.
_OWN = frozenset((*LAYOUT, "n", "best_of", "num_return_sequences", *GUIDES, "guided_decoding"))
PASSED_ON = NEUTRAL - _OWN
_ALWAYS_WRONG = frozenset(("web_search_options",))  # an empty object asks for it too


def check_names(body: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises ApiError 400 for a field that is unknown, naming the closest known one, or not supported."""
    known = frozenset((*known, *PASSED_ON, *WITHOUT_EFFECT))
    for name, value in body.items():
        if name in known or value is None:
            continue
        if name not in REFUSED:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f'; did you mean "{close[0]}"?' if close else ""
            raise invalid(f'unknown field "{name[:100]}"{hint}', name[:100], "unknown_parameter")
        if value not in ([], {}, "", False) or name in _ALWAYS_WRONG:
            raise invalid(f"{name}: is not supported: {REFUSED[name]}", name, "unsupported_parameter")


def read_model(model: type[BaseModel], body: Mapping[str, Any]) -> Any:
    """``body`` as ``model``. Raises ApiError 400 naming the first field that is wrong."""
    try:
        return model.model_validate({name: value for name, value in body.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        param = ".".join(str(step) for step in first["loc"]) or None
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            raise invalid(f"{param}: is missing", param, "missing_required_parameter") from None
        raise invalid(f"{param}: {reason[0].lower()}{reason[1:]}", param) from None


def model_inputs(
    body: Mapping[str, Any], texts: Iterable[str], values: Iterable[str]
) -> dict[str, str | bool]:
    """Inputs of the Triton model: ``texts`` as they are where they are text, everything else as JSON."""
    inputs: dict[str, str | bool] = {}
    for name in texts:
        if body.get(name) is not None:
            inputs[name] = plain(name, body[name]) if isinstance(body[name], str) else as_json(body[name])
    inputs |= {name: as_json(body[name]) for name in values if body.get(name) is not None}
    return inputs


def options(body: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of ``names`` that the request has, as the engine takes them, and its neutral ones."""
    given = {n: body[n] for n in (*names, *PASSED_ON) if body.get(n) is not None}
    if "stop" in given:
        given["stop"] = _stop(given["stop"])
    return given


def _stop(stop: Any) -> Any:
    """The engine reads a lone string that is a JSON list as that list; two of the same it takes as they are."""
    alone = [stop] if isinstance(stop, str) else stop
    if isinstance(alone, list) and len(alone) == 1 and str(alone[0]).lstrip().startswith("["):
        return alone * 2
    return stop


def plain(name: str, text: str) -> str:
    """``text``, which UTF-8 can carry. Raises ApiError 400."""
    try:
        check_text(name, text)
    except RequestError as error:
        raise invalid(error.message, name) from None
    return text


def as_json(value: Any) -> str:
    """JSON text that can be sent as UTF-8 whatever is in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which the engine refuses, naming its place
        return json.dumps(value, separators=(",", ":"))
    return text


def seeded(options: Mapping[str, Any], seed: int | None, choice: int) -> str:
    """``options`` as the engine's input ``sampling_parameters``; each choice has a seed of its own, and choice
    0 the one that was asked for."""
    return as_json(options if seed is None else {**options, "seed": (seed + choice) % 2**64})
