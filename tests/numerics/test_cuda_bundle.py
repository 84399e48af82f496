"""The runtime around the cuda engine, with references for kernels: a loaded bundle, and an engine process."""

from __future__ import annotations

import queue
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mm2c_runtime.bundle import Bundle
from mm2c_runtime.errors import BundleError, RequestError
from mm2c_runtime.server.client import EngineClient
from mm2c_runtime.server.launcher import EngineProcess

pytestmark = pytest.mark.usefixtures("one_thread")
OPS = "cuda_reference:SamplingOps"
ASKED = [
    {"messages": [{"role": "user", "content": "What is 2 + 3?"}], "max_tokens": 10, "temperature": 0.0},
    {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 6, "temperature": 0.0},
    {"prompt": "The weather in Paris", "max_tokens": 8, "temperature": 0.0, "logprobs": 2},
]


@pytest.fixture(scope="module")
def served(cuda_bundle: Path) -> Iterator[Bundle]:
    with Bundle.load(cuda_bundle, ops=OPS, verify_checksums="sizes", kv_tokens=250) as bundle:
        yield bundle


def test_answers_are_the_cpu_engines(served: Bundle, cpu_bundle: Path) -> None:
    """Requests of several threads, more than the budget of pages holds at once."""
    asked = [*ASKED, *ASKED]
    with ThreadPoolExecutor(len(asked)) as threads:
        found = list(threads.map(lambda fields: served.generate(**fields), asked))
    with Bundle.load(cpu_bundle, verify_checksums="sizes", threads=1) as other:
        expected = [other.generate(**fields) for fields in ASKED]
    for answer, wanted in zip(found, [*expected, *expected], strict=True):
        assert (answer.reasoning, answer.text) == (wanted.reasoning, wanted.text)
        assert answer.finish_reason == wanted.finish_reason
    assert served.engine.stats()["forward_ms"] > 0


def test_what_it_says_of_itself(served: Bundle) -> None:
    told = served.describe()
    assert (told["engine"], told["lowering"], told["kv_tokens"]) == ("cuda", "cuda", 256)
    with pytest.raises(RequestError, match="INVALID_ARGUMENT: "):
        served.generate(prompt="x " * 300)


def test_what_it_does_not_take(cuda_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="has no lowering 'portable'"):
        Bundle.load(cuda_bundle, lowering="portable", ops=OPS)
    monkeypatch.setenv("MM2C_KV_TOKENS", "0")
    with pytest.raises(BundleError, match="not a whole number of tokens of at least 1"):
        Bundle.load(cuda_bundle, ops=OPS)


def test_an_engine_process_serves_it(
    cuda_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "fixtures"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "mm2c_runtime.server.process", "--bundle", str(cuda_bundle)]
    command += ["--checksums", "sizes", "--kv-tokens", "250", "--ops", OPS]
    process = EngineProcess("", str(tmp_path / "engine.sock"), command=command)
    process.start()
    try:
        process.wait_ready(120)
        events: queue.Queue[dict[str, Any]] = queue.Queue()
        client = EngineClient(process.socket_path, events.put, lambda ids: events.put({"type": "lost"}))
        assert client.connect(10)["engine"] == "cuda"
        client.submit("a", {"text_input": "Hello!", "stream": True, "max_tokens": 4, "temperature": 0.0})
        told = []
        while not told or told[-1]["type"] not in ("finish", "error", "lost"):
            told.append(events.get(timeout=60))
        assert (told[-1]["type"], told[-1]["num_output_tokens"]) == ("finish", 4)
        client.close()
    finally:
        process.stop()
