"""A client that goes away frees its place in the engine."""

from __future__ import annotations

import time

from served import Served

# The fake engine says how many requests it holds when asked for this prompt.
CENSUS = "how many requests?"


def _running(server: Served) -> int:
    """Requests in the engine, this question left out."""
    return int(server.generate(text_input=CENSUS, max_tokens=1)["text_output"].split("#")[1])


def _until_idle(server: Served) -> None:
    """Long before the requests, of 1,000 s each, would end by themselves."""
    began = time.monotonic()
    while _running(server):
        assert time.monotonic() - began < 20, "the engine still works for a client that is gone"
        time.sleep(0.02)


def test_cancelling_a_grpc_stream_frees_the_slot(fake_server: Served) -> None:
    stream = fake_server.stream(text_input="long", max_tokens=100000)
    parts = iter(stream)
    for _ in range(3):
        next(parts)
    assert _running(fake_server) == 1
    stream.cancel()
    _until_idle(fake_server)


def test_closing_an_http_stream_frees_the_slot(fake_server: Served) -> None:
    events = fake_server.generate_stream(text_input="long", max_tokens=100000)
    for _ in range(3):
        next(events)
    assert _running(fake_server) == 1
    events.close()
    _until_idle(fake_server)
