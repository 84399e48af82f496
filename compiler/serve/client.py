"""Asking a served bundle over gRPC streaming: one stream a request.

An error's message begins with its code. The header triton_grpc_error, which would give it a status too, is not
sent: Triton 2.51 may end with SIGSEGV at the errors that follow.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mm2c.errors import UserError

MODEL = "minimax_m2"
FIRST_RESPONSE_SECONDS = 600.0  # a long prompt may take minutes until its first token
_NUMPY = {str: np.object_, bool: np.bool_, int: np.int32, float: np.float32}
_TRITON = {str: "BYTES", bool: "BOOL", int: "INT32", float: "FP32"}
_WIDER = {"seed": (np.int64, "INT64"), "random_seed": (np.uint64, "UINT64")}


@dataclass(frozen=True)
class Part:
    """What one response adds; ``tool_calls`` are OpenAI-shaped deltas. The last one has ``finish_reason``."""

    reasoning: str = ""
    text: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    num_input_tokens: int | None = None
    num_output_tokens: int | None = None


class TritonClient:
    """A connection to ``url`` (host:port of gRPC).

    Raises UserError where nobody answers or the server is not ready.
    """

    def __init__(self, url: str) -> None:
        import tritonclient.grpc as grpc

        self._grpc = grpc
        self._url = url.removeprefix("grpc://").removeprefix("http://").rstrip("/")
        try:
            self._client = grpc.InferenceServerClient(self._url)
            ready = self._client.is_server_ready(client_timeout=5)
        except grpc.InferenceServerException as error:
            raise self._unreachable(error) from None
        if not ready:
            raise UserError(
                "the server is there but not ready; it may be starting, or restarting its engine",
                where=self._url,
                remedy="try again in a moment",
                exit_code=1,
            )

    def ask(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, **options: Any
    ) -> Iterator[Part]:
        """Stream the answer to a conversation. ``options``: input tensors by name; None is left out.

        Raises RequestError with Triton's reason where the request fails. Leaving the loop early cancels it.
        """
        fields = {
            "messages": json.dumps(messages),
            "tools": json.dumps(tools) if tools else None,
            "stream": True,
        }
        inputs = [self._tensor(n, v) for n, v in {**fields, **options}.items() if v is not None]
        answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        # A client of its own for each request: a tritonclient holds one stream, and an error ends it.
        client = self._grpc.InferenceServerClient(self._url)
        client.start_stream(lambda result, error: answers.put((result, error)))
        ended = False
        try:
            client.async_stream_infer(MODEL, inputs, enable_empty_final_response=True)
            while not ended:
                result, error = answers.get(timeout=FIRST_RESPONSE_SECONDS)
                if error is not None:
                    ended = True
                    raise self._failed(error)
                response = result.get_response()
                ended = response.parameters["triton_final_response"].bool_param
                if response.outputs:
                    yield _part(result)
        except queue.Empty:
            raise UserError(f"no answer within {FIRST_RESPONSE_SECONDS:.0f} s", where=self._url) from None
        finally:
            client.stop_stream(cancel_requests=not ended)
            client.close()

    def close(self) -> None:
        self._client.close()

    def _tensor(self, name: str, value: Any) -> Any:
        many = isinstance(value, (list, tuple))
        items = list(value) if many else [value]
        kind = type(items[0])
        if name == "seed" and value >= 2**63:
            name = "random_seed"  # the same option, as an unsigned tensor
        dtype, triton = _WIDER.get(name, (_NUMPY[kind], _TRITON[kind]))
        if kind is str:
            items = [item.encode() for item in items]
        tensor = self._grpc.InferInput(name, [len(items)], triton)
        tensor.set_data_from_numpy(np.array(items, dtype=dtype))
        return tensor

    def _failed(self, error: Any) -> Exception:
        from mm2c_runtime.errors import RequestError

        text = error.message() or str(error)
        for code in ("INVALID_ARGUMENT", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED", "INTERNAL"):
            if text.startswith(code):
                return RequestError(code, text[len(code) :].lstrip(": "))
        if "UNAVAILABLE" in str(error.status()):
            return self._unreachable(error)
        return RequestError("INTERNAL", text)

    def _unreachable(self, error: Any) -> UserError:
        reason = (error.message() or str(error)).splitlines()[0]
        return UserError(
            f"no Triton server answers: {reason}",
            where=self._url,
            remedy="start one with `mm2c serve BUNDLE`, or name its gRPC address with --url HOST:PORT",
            exit_code=1,
        )


def _part(result: Any) -> Part:
    return Part(
        reasoning=_text(result, "reasoning_output"),
        text=_text(result, "text_output"),
        tool_calls=json.loads(_text(result, "tool_calls") or "[]"),
        finish_reason=_text(result, "finish_reason") or None,
        num_input_tokens=_number(result, "num_input_tokens"),
        num_output_tokens=_number(result, "num_output_tokens"),
    )


def _text(result: Any, name: str) -> str:
    array = result.as_numpy(name)
    return "" if array is None or not array.size else bytes(array.reshape(-1)[0]).decode()


def _number(result: Any, name: str) -> int | None:
    array = result.as_numpy(name)
    return None if array is None or not array.size else int(array.reshape(-1)[0])
