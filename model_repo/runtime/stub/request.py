"""A Triton request becomes fields for the engine and the layout of its answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mm2c_runtime.errors import RequestError
from mm2c_runtime.stub.options import ANSWER, INPUTS, Option

# Triton puts these among the request parameters; they are its own.
TRITON_PARAMETERS = ("timeout", "priority")


@dataclass(frozen=True)
class Answer:
    """What the client wants back. ``outputs``: names of the tensors it asked for; ``echo``: text put before."""

    stream: bool
    outputs: frozenset[str]
    echo: str = ""


@dataclass(frozen=True)
class Call:
    """One request, decoded. ``timeout``: seconds the client grants it, or None."""

    fields: dict[str, Any] = field(repr=False)
    answer: Answer
    timeout: float | None


def decode(pb: Any, request: Any) -> Call:
    """Read every tensor and parameter of ``request``.

    Parameters that are no tensor travel on as fields, so that the engine refuses what it does not know by name.
    Raises RequestError(INVALID_ARGUMENT) where a tensor holds too many values, text is no UTF-8, or a name comes twice.
    """
    given: dict[str, Any] = {}
    for name, option in INPUTS.items():
        tensor = pb.get_input_tensor_by_name(request, name)
        if tensor is not None:
            given[name] = _value(name, option, tensor.as_numpy())
    parameters = json.loads(request.parameters() or "{}")
    microseconds = request.timeout() or parameters.get("timeout") or 0
    for name, value in parameters.items():
        if name in TRITON_PARAMETERS:
            continue
        if name in given:
            raise RequestError("INVALID_ARGUMENT", f"{name} is given both as a tensor and as a parameter")
        given[name] = value
    answer = _answer(given, frozenset(request.requested_output_names()))
    fields = {name: value for name, value in given.items() if name not in ANSWER}
    return Call(fields, answer, _seconds(microseconds))


def _answer(given: dict[str, Any], requested: frozenset[str]) -> Answer:
    hidden = {
        name
        for name in ("finish_reason", "num_input_tokens", "num_output_tokens")
        if given.get(f"return_{name}") is False
    }
    if not given.get("return_token_ids", False):
        hidden.add("token_ids")
    text = given.get("text_input", "")
    echo = text if given.get("exclude_input_in_output") is False else ""
    return Answer(bool(given.get("stream", False)), requested - hidden, echo)


def _seconds(microseconds: object) -> float | None:
    if isinstance(microseconds, bool) or not isinstance(microseconds, int) or microseconds < 0:
        raise RequestError("INVALID_ARGUMENT", f"timeout must be whole microseconds, got {microseconds!r}")
    return microseconds / 1e6 if microseconds else None


def _value(name: str, option: Option, array: np.ndarray[Any, Any]) -> Any:
    values = [_element(name, option, item) for item in array.reshape(-1)]
    if option.many:
        return values
    if len(values) != 1:
        raise RequestError("INVALID_ARGUMENT", f"{name} takes one value, got {len(values)}")
    return values[0]


def _element(name: str, option: Option, item: Any) -> Any:
    if option.type == "TYPE_STRING":
        raw = item if isinstance(item, bytes) else str(item).encode()
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise RequestError("INVALID_ARGUMENT", f"{name} is not UTF-8: {error.reason}") from None
    if option.type == "TYPE_FP32":
        return float(str(item))  # the shortest decimal: 0.7 arrives as 0.7, not as 0.699999988
    return item.item()
