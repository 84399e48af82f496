"""The body of ``minimax_m2_parse``."""

from __future__ import annotations

import difflib
import json
import traceback
from typing import Any

import numpy as np

from mm2c_runtime.errors import RequestError
from mm2c_runtime.option_values import text_of
from mm2c_runtime.parsing import parse_message
from mm2c_runtime.parsing.message import ToolCall
from mm2c_runtime.requests import tools_of
from mm2c_runtime.stub.respond import triton_error

_INPUTS = ("text", "tools", "starts_in_reasoning")


class ParseModel:
    """Finished text [n] to reasoning, content and tool_calls [n]. Holds no state and no engine."""

    def __init__(self, pb: Any) -> None:
        self._pb = pb

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order; whatever goes wrong with one is its own response."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            return self._parsed(request)
        except RequestError as error:
            return self._error(error.code, error.message)
        except Exception as error:  # a defect met by one request must not fail those batched with it
            trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            self._pb.Logger.log_error(f"mm2c: a request failed unexpectedly\n{trace}")
            return self._error("INTERNAL", f"{type(error).__name__}: {error}")

    def _error(self, code: str, message: str) -> Any:
        return self._pb.InferenceResponse(error=triton_error(self._pb, code, message))

    def _parsed(self, request: Any) -> Any:
        texts, tools, starts = self._read(request)
        parsed = [
            parse_message(text, given, starts_in_reasoning=start)
            for text, given, start in zip(texts, tools, starts, strict=True)
        ]
        columns = {
            "reasoning": [message.reasoning for message in parsed],
            "content": [message.content for message in parsed],
            "tool_calls": [
                json.dumps([_call(call) for call in message.tool_calls], ensure_ascii=False)
                for message in parsed
            ],
        }
        wanted = request.requested_output_names()
        return self._pb.InferenceResponse(
            [self._pb.Tensor(name, _bytes(column)) for name, column in columns.items() if name in wanted]
        )

    def _read(self, request: Any) -> tuple[list[str], list[Any], list[bool]]:
        """Texts, tools and starts, one of each a text. Raises RequestError(INVALID_ARGUMENT)."""
        unknown = sorted(set(json.loads(request.parameters() or "{}")) - {"timeout", "priority"})
        if unknown:
            close = difflib.get_close_matches(unknown[0], _INPUTS, n=1)
            meant = f'; did you mean "{close[0]}"?' if close else f"; the inputs are {', '.join(_INPUTS)}"
            raise RequestError("INVALID_ARGUMENT", f'unknown option "{unknown[0]}"{meant}')
        texts = [text_of("text", item) for item in self._column(request, "text")]
        tools = [tools_of(item) for item in self._column(request, "tools")]
        starts = [bool(item) for item in self._column(request, "starts_in_reasoning")]
        return (
            texts,
            _spread("tools", tools, None, len(texts)),
            _spread("starts_in_reasoning", starts, True, len(texts)),
        )

    def _column(self, request: Any, name: str) -> list[Any]:
        tensor = self._pb.get_input_tensor_by_name(request, name)
        return [] if tensor is None else list(tensor.as_numpy().reshape(-1))


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _spread(name: str, values: list[Any], default: Any, count: int) -> list[Any]:
    if len(values) == count:
        return values
    if len(values) > 1:
        raise RequestError("INVALID_ARGUMENT", f"{name} has {len(values)} values for {count} texts")
    return (values or [default]) * count


def _bytes(column: list[str]) -> np.ndarray[Any, Any]:
    return np.array([text.encode() for text in column], dtype=object)
