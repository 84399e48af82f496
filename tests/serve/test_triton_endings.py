"""Requests that end while others are asked whether they were cancelled: Triton once died of it (SIGSEGV)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import Served
from tritonclient.utils import InferenceServerException

WORKERS = 6
SECONDS = 4.0


def _rounds(server: Served, until: float) -> int:
    """Streams, refusals over both doors and cancellations, one after the other."""
    count = 0
    while time.monotonic() < until:
        bystander = server.stream(text_input="ok", max_tokens=8)
        for path in ("minimax_m2/generate", "minimax_m2/generate_stream"):
            assert server.post(path, text_input="a", max_tokens=0)[0] == 400
        with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT"):
            server.stream(text_input="a", max_tokens=0).whole()
        server.stream(text_input="left", max_tokens=4).cancel()
        assert bystander.whole().text == "".join(f"ok{n} " for n in range(8))
        count += 1
    return count


def test_the_server_outlives_many_endings(fake_server: Served) -> None:
    until = time.monotonic() + SECONDS
    with ThreadPoolExecutor(WORKERS) as pool:
        counts = list(pool.map(lambda _: _rounds(fake_server, until), range(WORKERS)))
    assert sum(counts) > 3 * WORKERS
    assert "replacing the server" not in fake_server.errors.read_text()
    assert "Signal (" not in fake_server.log.read_text(errors="replace").replace("Signal (15)", "")
