"""A client that goes away ends its request in the engine, whatever it waits for."""

from __future__ import annotations

import itertools
import json
import socket
import time
from typing import Any

import pytest
from running_front import RunningFront

from mm2c_runtime.errors import RequestError
from mm2c_runtime.openai.triton import Part


def _connect(front: RunningFront, **fields: Any) -> socket.socket:
    """A request sent, its answer not read."""
    body = json.dumps({"messages": [{"role": "user", "content": "Hello!"}], **fields}).encode()
    connection = socket.create_connection(("127.0.0.1", front.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def _until_running(front: RunningFront, count: int) -> None:
    end = time.monotonic() + 20
    while front.engine.running < count:
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("told", [[], [Part(text="x")]])
def test_a_disconnect_ends_every_choice_at_once(
    front: RunningFront, stream: bool, n: int, told: list[Part]
) -> None:
    front.engine.script = lambda fields: [*told, None]
    connection = _connect(front, stream=stream, n=n)
    if stream and told:
        assert b"200 OK" in connection.recv(1000)
    _until_running(front, n)
    connection.close()
    front.until_idle()  # of an engine that never ends by itself


def test_a_client_that_never_reads_and_goes(front: RunningFront) -> None:
    made = itertools.count()
    front.engine.script = lambda fields: (
        Part(text="x" * 10_000 + str(next(made))) for _ in itertools.count()
    )  # type: ignore[assignment,return-value]
    connection = _connect(front, stream=True)
    _until_running(front, 1)
    before, end = -2, time.monotonic() + 20
    while (now := next(made)) != before + 1:  # until the full socket holds it up
        assert time.monotonic() < end, "an answer that nobody reads is gathered"
        before = now
        time.sleep(0.2)
    assert front.engine.running == 1
    connection.close()
    front.until_idle()


def test_a_stream_that_the_official_client_leaves(front: RunningFront) -> None:
    front.engine.script = lambda fields: [Part(text="a"), None]
    messages: Any = [{"role": "user", "content": "Hello!"}]
    stream = front.client().chat.completions.create(model="m2", messages=messages, stream=True)
    for chunk in stream:
        if chunk.choices[0].delta.content == "a":
            break
    assert front.engine.running == 1
    stream.close()
    front.until_idle()


def test_a_failure_of_one_stream_leaves_others_alone(front: RunningFront) -> None:
    def script(fields: dict[str, Any]) -> list[Any]:
        return [RequestError("UNAVAILABLE", "no")] if '"bad"' in fields["messages"] else [None]

    front.engine.script = script
    good = _connect(front)
    _until_running(front, 1)
    bad = {"messages": [{"role": "user", "content": "bad"}], "stream": True}
    assert front.ask("/v1/chat/completions", bad)[0] == 503
    assert front.engine.running == 1
    good.close()
    front.until_idle()
