"""What waits for a request becomes tensors or an error of Triton."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from mm2c_runtime.stub.outbox import Event, Pending
from mm2c_runtime.stub.request import Answer
from mm2c_runtime.tool_calls import joined, whole

# Triton's nearest code; the message begins with ours, for clients of a stream that see no status.
_TRITON_CODE = {
    "INVALID_ARGUMENT": "INVALID_ARG",
    "UNAVAILABLE": "UNAVAILABLE",
    "RESOURCE_EXHAUSTED": "UNAVAILABLE",
    "CANCELLED": "CANCELLED",
    "INTERNAL": "INTERNAL",
}


def triton_error(pb: Any, code: str, message: str) -> Any:
    """A TritonError whose message begins with ``code``."""
    text = message if message.startswith(code) else f"{code}: {message}"
    return pb.TritonError(text, getattr(pb.TritonError, _TRITON_CODE.get(code, "INTERNAL")))


def response(pb: Any, answer: Answer, pending: Pending) -> Any:
    """An InferenceResponse of what is pending.

    Text tensors are [1], ``token_ids`` [n], ``logprobs`` a JSON list of n where they were asked for. While
    streaming ``tool_calls`` holds deltas, otherwise whole calls; it is JSON always. Finish reason and counts
    come with the last response only.
    """
    end = pending.end
    if end is not None and end["type"] == "error":
        return pb.InferenceResponse(error=triton_error(pb, end["code"], end["message"]))
    calls = joined(pending.tool_calls) if answer.stream else whole(pending.tool_calls)
    values: dict[str, np.ndarray[Any, Any]] = {
        "text_output": _text("".join(pending.text)),
        "reasoning_output": _text("".join(pending.reasoning)),
        "tool_calls": _text(json.dumps(calls, ensure_ascii=False, separators=(",", ":"))),
        "token_ids": np.array(pending.token_ids, np.int32),
    }
    if pending.logprobs:
        values["logprobs"] = _text(json.dumps(pending.logprobs, separators=(",", ":")))
    if end is not None:
        values.update(_ending(end))
    return pb.InferenceResponse([pb.Tensor(n, v) for n, v in values.items() if n in answer.outputs])


def _ending(finish: Event) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "finish_reason": _text(finish["finish_reason"]),
        "num_input_tokens": np.array([finish["num_input_tokens"]], np.int32),
        "num_output_tokens": np.array([finish["num_output_tokens"]], np.int32),
    }


def _text(value: str) -> np.ndarray[Any, Any]:
    return np.array([value.encode()], dtype=object)
