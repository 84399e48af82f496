"""Generations of a Triton server over gRPC, asynchronously: one stream a request, cancelled where nobody reads.

The stream is tritonclient's own stub and messages. Its ``stream_infer`` hides the status of a call, without
which the server's CANCELLED cannot be told from a cancellation of this process's own.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, get_args

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mm2c_runtime.errors import Code, RequestError

MODEL = "minimax_m2"
READY_SECONDS = 2.0
_LENGTH = struct.Struct("<I")
_END_SECONDS = 1.0  # for a stream to end behind its error
_OUTPUTS = (
    "text_output", "reasoning_output", "tool_calls", "finish_reason", "num_input_tokens", "num_output_tokens",
)  # fmt: skip
_CHANNEL = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that was replaced is found again within a second, not within gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
)
# Triton's own errors, which do not begin with a code of ours, and have a status only where the call itself fails.
_UNAVAILABLE = re.compile(
    r"unknown model|not (at )?ready|not healthy|unavailable|shutting down|exiting", re.I
)
_INVALID = re.compile(r"\binference (input|request)\b|\bexpected\b.*\binputs?\b", re.I)
_CODES: dict[grpc.StatusCode, Code] = {
    grpc.StatusCode.INVALID_ARGUMENT: "INVALID_ARGUMENT",
    grpc.StatusCode.UNAVAILABLE: "UNAVAILABLE",
    grpc.StatusCode.NOT_FOUND: "UNAVAILABLE",  # the model is not loaded
    grpc.StatusCode.RESOURCE_EXHAUSTED: "RESOURCE_EXHAUSTED",
    grpc.StatusCode.CANCELLED: "CANCELLED",
    grpc.StatusCode.DEADLINE_EXCEEDED: "CANCELLED",
}


@dataclass(frozen=True, slots=True)
class Part:
    """What one response adds. ``tool_calls`` are OpenAI's deltas while streaming, else whole calls; ``logprobs``
    one object a token. The last part has ``finish_reason`` and the counts."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    num_input_tokens: int = 0
    num_output_tokens: int = 0


class Triton:
    """``url``: host:port of gRPC. Made inside a running event loop, and used from it alone."""

    def __init__(self, url: str) -> None:
        self._channel = grpc.aio.insecure_channel(url, options=_CHANNEL)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def ready(self) -> bool:
        """Whether the server and all its models are, the engine's among them."""
        try:
            server = await self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=READY_SECONDS)
            model = await self._stub.ModelReady(
                service_pb2.ModelReadyRequest(name=MODEL), timeout=READY_SECONDS
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(server.ready and model.ready)

    async def generate(self, fields: Mapping[str, str | bool], *, logprobs: bool) -> AsyncGenerator[Part]:
        """The answer to ``fields`` (inputs of the model by name), in one part unless ``stream`` is among them.

        Raises RequestError where the request fails. Closing the generator, or cancelling who waits for it,
        cancels the request at once, and frees its place in the engine.
        """
        request = service_pb2.ModelInferRequest(model_name=MODEL)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        for name, value in fields.items():
            _add(request, name, value)
        for name in (*_OUTPUTS, *(("logprobs",) if logprobs else ())):
            request.outputs.add(name=name)
        # Not with triton_grpc_error: true, which gives errors a status: Triton 2.51 then may end with SIGSEGV.
        call = self._stub.ModelStreamInfer()
        whole = False
        try:
            await call.write(request)
            await call.done_writing()
            while (message := await call.read()) is not grpc.aio.EOF:
                if message.error_message:
                    await _end(call)
                    raise _error(grpc.StatusCode.UNKNOWN, message.error_message)
                if message.infer_response.outputs:
                    part = _part(message.infer_response)
                    whole = part.finish_reason is not None
                    yield part
            if not whole:
                raise RequestError("UNAVAILABLE", "the answer broke off; send the request again")
        except grpc.aio.AioRpcError as error:
            raise _error(error.code(), error.details() or "") from None
        except asyncio.CancelledError:
            # gRPC raises this for a CANCELLED of the server's too.
            if call.done() and not _by_us(await call.details()):
                raise _error(grpc.StatusCode.CANCELLED, await call.details()) from None
            raise
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._channel.close(None)


async def _end(call: Any) -> None:
    """Let a stream end by itself: a cancel would meet the server while it does."""
    with suppress(asyncio.TimeoutError, grpc.aio.AioRpcError):
        await asyncio.wait_for(_read_out(call), _END_SECONDS)


async def _read_out(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


def _by_us(details: str | None) -> bool:
    return not details or details.startswith("Locally cancelled")


def _add(request: Any, name: str, value: str | bool) -> None:
    if isinstance(value, bool):
        request.inputs.add(name=name, datatype="BOOL", shape=[1])
        request.raw_input_contents.append(b"\1" if value else b"\0")
        return
    text = value.encode()
    request.inputs.add(name=name, datatype="BYTES", shape=[1])
    request.raw_input_contents.append(_LENGTH.pack(len(text)) + text)


def _part(response: Any) -> Part:
    raw = {
        output.name: data for output, data in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    calls, logprobs = _text(raw, "tool_calls"), _text(raw, "logprobs")
    return Part(
        _text(raw, "text_output"),
        _text(raw, "reasoning_output"),
        json.loads(calls) if len(calls) > 2 else [],
        json.loads(logprobs) if logprobs else [],
        _text(raw, "finish_reason") or None,
        int.from_bytes(raw.get("num_input_tokens", b""), "little"),
        int.from_bytes(raw.get("num_output_tokens", b""), "little"),
    )


def _text(raw: Mapping[str, bytes], name: str) -> str:
    return raw[name][_LENGTH.size :].decode() if name in raw else ""


def _error(status: grpc.StatusCode, details: str) -> RequestError:
    for code in get_args(Code):
        if details.startswith(code):
            return RequestError(code, details[len(code) :].lstrip(": "))
    code = _CODES.get(status, "INTERNAL")
    if code == "INTERNAL":
        code = "UNAVAILABLE" if _UNAVAILABLE.search(details) else code
        code = "INVALID_ARGUMENT" if _INVALID.search(details) else code
    if code == "UNAVAILABLE":
        details = f"the server behind this one does not answer, or is starting: {details}"
    return RequestError(code, details)
