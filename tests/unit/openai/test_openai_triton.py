"""The gRPC side, against a server of this process that speaks Triton's protocol."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mm2c_runtime.errors import RequestError
from mm2c_runtime.openai.triton import Part, Triton

FIELDS = {"messages": "é", "stream": True}


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, answer: Callable[[Any], AsyncIterator[Any]]) -> None:
        self._answer = answer
        self.requests: list[Any] = []
        self.metadata: dict[str, str] = {}
        self.ended = asyncio.Event()
        self.model_ready = True

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        self.metadata = dict(context.invocation_metadata())
        try:
            async for request in requests:
                self.requests.append(request)
            async for response in self._answer(context):
                yield response
        finally:
            self.ended.set()

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=self.model_ready and request.name == "minimax_m2")


def _response(**outputs: str | int) -> Any:
    response = service_pb2.ModelStreamInferResponse()
    for name, value in outputs.items():
        text = str(value).encode()
        response.infer_response.outputs.add(name=name, shape=[1])
        raw = struct.pack("<i", value) if isinstance(value, int) else struct.pack("<I", len(text)) + text
        response.infer_response.raw_output_contents.append(raw)
    return response


def _with_server(
    answer: Callable[[Any], AsyncIterator[Any]], test: Callable[[Triton, Servicer], Awaitable[None]]
) -> None:
    async def run() -> None:
        server = grpc.aio.server()
        servicer = Servicer(answer)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        triton = Triton(f"127.0.0.1:{port}")
        try:
            await asyncio.wait_for(test(triton, servicer), 20)
        finally:
            await triton.close()
            await server.stop(None)

    asyncio.run(run())


async def _said(context: Any) -> AsyncIterator[Any]:
    yield _response(text_output="Grüße", reasoning_output="", tool_calls="[]")
    yield _response(tool_calls='[{"index":0}]', logprobs='[{"token":1}]')
    yield _response(finish_reason="stop", num_input_tokens=300, num_output_tokens=70000)
    yield service_pb2.ModelStreamInferResponse()  # the empty one that ends a decoupled request


def test_parts() -> None:
    async def test(triton: Triton, servicer: Servicer) -> None:
        parts = [part async for part in triton.generate(FIELDS, logprobs=True)]
        assert parts == [
            Part(text="Grüße"),
            Part(tool_calls=[{"index": 0}], logprobs=[{"token": 1}]),
            Part(finish_reason="stop", num_input_tokens=300, num_output_tokens=70000),
        ]
        (request,) = servicer.requests
        assert request.model_name == "minimax_m2"
        assert [(one.name, one.datatype, list(one.shape)) for one in request.inputs] == [
            ("messages", "BYTES", [1]), ("stream", "BOOL", [1])
        ]  # fmt: skip
        assert list(request.raw_input_contents) == [b"\2\0\0\0\xc3\xa9", b"\1"]
        assert "logprobs" in {output.name for output in request.outputs}
        assert "token_ids" not in {output.name for output in request.outputs}
        assert "triton_grpc_error" not in servicer.metadata

    _with_server(_said, test)


@pytest.mark.parametrize(
    ("status", "details", "code", "message"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT: top_k: no", "INVALID_ARGUMENT", "top_k: no"),
        (grpc.StatusCode.UNAVAILABLE, "RESOURCE_EXHAUSTED: later", "RESOURCE_EXHAUSTED", "later"),
        (
            grpc.StatusCode.CANCELLED,
            "CANCELLED: the timeout of 1 s ran out",
            "CANCELLED",
            "the timeout of 1 s ran out",
        ),
        (grpc.StatusCode.INTERNAL, "stub died", "INTERNAL", "stub died"),
        (grpc.StatusCode.NOT_FOUND, "unknown model", "UNAVAILABLE", "unknown model"),
        (grpc.StatusCode.UNKNOWN, "what", "INTERNAL", "what"),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_failures(status: Any, details: str, code: str, message: str, before: int) -> None:
    async def answer(context: Any) -> AsyncIterator[Any]:
        for _ in range(before):
            yield _response(text_output="x")
        await context.abort(status, details)

    async def test(triton: Triton, servicer: Servicer) -> None:
        parts = triton.generate(FIELDS, logprobs=False)
        for _ in range(before):
            assert (await anext(parts)).text == "x"
        with pytest.raises(RequestError, match=message) as error:
            await anext(parts)
        assert error.value.code == code

    _with_server(answer, test)


@pytest.mark.parametrize(
    ("told", "code", "message"),
    [
        ("INVALID_ARGUMENT: top_k: no", "INVALID_ARGUMENT", "top_k: no"),
        ("RESOURCE_EXHAUSTED: later", "RESOURCE_EXHAUSTED", "later"),
        ("Request for unknown model: 'minimax_m2' is not found", "UNAVAILABLE", "unknown model"),
        ("Stub process 'minimax_m2_0_0' is not healthy.", "UNAVAILABLE", "not healthy"),
        (
            "unexpected inference input 'x' for model 'minimax_m2'",
            "INVALID_ARGUMENT",
            "unexpected inference input",
        ),
        ("out of luck", "INTERNAL", "out of luck"),
    ],
)
@pytest.mark.parametrize("ends", [True, False])
def test_errors_within_a_stream(
    monkeypatch: pytest.MonkeyPatch, told: str, code: str, message: str, ends: bool
) -> None:
    """Which then ends by itself, or is cancelled soon."""
    monkeypatch.setattr("mm2c_runtime.openai.triton._END_SECONDS", 5.0 if ends else 0.05)
    cancelled = []

    async def answer(context: Any) -> AsyncIterator[Any]:
        yield service_pb2.ModelStreamInferResponse(error_message=told)
        try:
            await asyncio.sleep(0.1 if ends else 10)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def test(triton: Triton, servicer: Servicer) -> None:
        with pytest.raises(RequestError, match=message) as error:
            await anext(triton.generate(FIELDS, logprobs=False))
        assert error.value.code == code
        await servicer.ended.wait()
        assert bool(cancelled) is not ends

    _with_server(answer, test)


def test_a_stream_that_breaks_off() -> None:
    async def answer(context: Any) -> AsyncIterator[Any]:
        yield _response(text_output="x")

    async def test(triton: Triton, servicer: Servicer) -> None:
        parts = triton.generate(FIELDS, logprobs=False)
        assert (await anext(parts)).text == "x"
        with pytest.raises(RequestError, match="UNAVAILABLE: the answer broke off"):
            await anext(parts)

    _with_server(answer, test)


async def _endless(context: Any) -> AsyncIterator[Any]:
    yield _response(text_output="x")
    await asyncio.Event().wait()


def test_closing_a_generation_cancels_the_call() -> None:
    async def test(triton: Triton, servicer: Servicer) -> None:
        async with aclosing(triton.generate(FIELDS, logprobs=False)) as parts:
            assert (await anext(parts)).text == "x"
        await servicer.ended.wait()

    _with_server(_endless, test)


def test_cancelling_who_waits_cancels_the_call() -> None:
    async def test(triton: Triton, servicer: Servicer) -> None:
        async def read() -> None:
            async for _ in triton.generate(FIELDS, logprobs=False):
                pass

        task = asyncio.create_task(read())
        while not servicer.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await servicer.ended.wait()

    _with_server(_endless, test)


def test_readiness() -> None:
    async def test(triton: Triton, servicer: Servicer) -> None:
        assert await triton.ready()
        servicer.model_ready = False
        assert not await triton.ready()

    _with_server(_said, test)


def test_nobody_there() -> None:
    async def run() -> None:
        triton = Triton("127.0.0.1:9")
        assert not await triton.ready()
        with pytest.raises(RequestError, match=r"^UNAVAILABLE: the server behind this one does not answer"):
            await anext(triton.generate(json.loads("{}"), logprobs=False))
        await triton.close()

    asyncio.run(run())
