"""A Triton request becomes fields for the engine and the layout of its answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mm2c_runtime.errors import RequestError
from mm2c_runtime.option_names import LAYOUT, names_of
from mm2c_runtime.option_values import boolean, text_of
from mm2c_runtime.stub.options import INPUTS, OUTPUTS, Option

# Outputs with a flag ``return_…``. The vLLM backend gives all of them on request; this one, unless told not to,
# all but the token ids, which are given where they were named as an output.
_SHOWN = tuple(name.removeprefix("return_") for name in LAYOUT)
_STREAM = names_of("stream")
_LOGPROBS = (*names_of("logprobs"), "sampling_parameters")  # what may ask for log probabilities


@dataclass(frozen=True)
class Answer:
    """What the client wants back. ``outputs``: names of the tensors it asked for."""

    stream: bool
    outputs: frozenset[str]


@dataclass(frozen=True)
class Call:
    """One request, decoded: what the engine is told, and how its answer is laid out."""

    fields: dict[str, Any] = field(repr=False)
    answer: Answer


def decode(pb: Any, request: Any) -> Call:
    """Read every tensor and parameter of ``request``.

    Parameters that are no tensor travel on as fields, so that the engine refuses what it does not know by
    name; Triton's ``timeout`` (µs) becomes the engine's (s). Raises RequestError(INVALID_ARGUMENT) where a
    tensor holds too many values, text is no UTF-8, or a name comes twice.
    """
    given: dict[str, Any] = {}
    for name, option in INPUTS.items():
        tensor = pb.get_input_tensor_by_name(request, name)
        if tensor is not None:
            given[name] = _value(name, option, tensor.as_numpy())
    parameters = json.loads(request.parameters() or "{}")
    for name, value in parameters.items():
        if name in given:
            raise RequestError("INVALID_ARGUMENT", f"{name} is given both as a tensor and as a parameter")
        given[name] = value
    microseconds = given.pop("timeout", 0) or request.timeout()
    if microseconds:
        given["timeout"] = _seconds(microseconds)
    outputs = _outputs(frozenset(request.requested_output_names()), given)
    stream = any(boolean(name, given[name]) for name in _STREAM if name in given)
    return Call(given, Answer(stream, outputs))


def _outputs(asked: frozenset[str], given: dict[str, Any]) -> frozenset[str]:
    """Names of the tensors to answer with.

    Triton names every output where the client named none, so only fewer than all are a wish of the client's.
    """
    chosen = asked < set(OUTPUTS)
    flags = {
        name: boolean(f"return_{name}", given[f"return_{name}"])
        for name in _SHOWN
        if f"return_{name}" in given
    }
    shown = {"token_ids": chosen, **flags}
    if chosen and "logprobs" in asked and not any(name in given for name in _LOGPROBS):
        raise RequestError(
            "INVALID_ARGUMENT", "the output logprobs was asked for; it needs the option logprobs"
        )
    return asked - {name for name, wanted in shown.items() if not wanted}


def _seconds(microseconds: object) -> float:
    if isinstance(microseconds, bool) or not isinstance(microseconds, int) or microseconds < 0:
        raise RequestError("INVALID_ARGUMENT", f"timeout must be whole microseconds, got {microseconds!r}")
    return microseconds / 1e6


def _value(name: str, option: Option, array: np.ndarray[Any, Any]) -> Any:
    values = [_element(name, option, item) for item in array.reshape(-1)]
    if option.many:
        return values
    if len(values) != 1:
        raise RequestError("INVALID_ARGUMENT", f"{name} takes one value, got {len(values)}")
    return values[0]


def _element(name: str, option: Option, item: Any) -> Any:
    if option.type == "TYPE_STRING":
        return text_of(name, item) if isinstance(item, bytes) else str(item)
    if option.type == "TYPE_FP32":
        return float(str(item))  # the shortest decimal: 0.7 arrives as 0.7, not as 0.699999988
    return item.item()
