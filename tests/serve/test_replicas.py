"""Replicas and attention-DP under the real Triton: requests spread, a lost replica takes only its own with it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import make
from served import Served
from tritonclient.utils import InferenceServerException

from mm2c.pipeline import build_bundle
from mm2c.request import BuildRequest
from mm2c.serve.processes import engines, marked
from mm2c_runtime.server.replica_stats import replica_stats

PATIENCE = 40.0  # seconds on a machine that is busy; an idle one takes two
CENSUS = "how many requests?"
QUESTIONS = [
    "Hello!",
    "What is 2 plus 3?",
    "Who are you?",
    "Tell me a joke.",
    "Thanks, bye!",
    "What time is it?",
]
TOKENS = 40


def _engines(server: Served) -> dict[str, int]:
    """Process ids of the engines, by the name of their socket."""
    found = {}
    for pid in engines("MM2C_SERVE_RUN", str(server.run)):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        found[Path(os.fsdecode(arguments[arguments.index(b"--socket") + 1])).name] = pid
    return found


def _within(seconds: float, condition: Callable[[], Any]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def _rest(stream: Iterator[dict[str, Any]]) -> str:
    return "".join(part["text_output"] for part in stream)


def _census(server: Served, times: int) -> list[int]:
    """What the engines say of how many requests they run, this one included; in order."""
    texts = [server.generate(text_input=CENSUS)["text_output"] for _ in range(times)]
    return sorted(int(text.strip("#")) for text in texts)


@pytest.fixture
def two_replicas(tmp_path: Path) -> Iterator[Served]:
    """Of an engine that computes nothing."""
    bundle = make(tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["mapping"]["dp"] = 2
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    server = Served(bundle, tmp_path)
    yield server
    if server.process.poll() is None:
        server.stop()


def test_a_killed_replica_takes_its_own_requests_alone(two_replicas: Served) -> None:
    server = two_replicas
    before = _engines(server)
    assert sorted(before) == ["engine.sock", "engine.sock.1"]
    streams = [iter(server.stream(text_input=word, max_tokens=500)) for word in "ab"]
    begun = [next(stream)["text_output"] for stream in streams]
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(_rest, stream) for stream in streams]
        assert _census(server, 2) == [1, 1]  # one stream each
        assert server.infer("minimax_m2_unary", text_input="u", max_tokens=2)["text_output"][0] == b"u0 u1 "
        os.kill(before["engine.sock.1"], signal.SIGKILL)
        failed = [answer for answer in answers if answer.exception(PATIENCE) is not None]
        assert server.ready() == 200  # one engine serves
        assert server.generate(text_input="t", max_tokens=2)["text_output"] == "t0 t1 "
    assert len(failed) == 1
    with pytest.raises(InferenceServerException, match="UNAVAILABLE: the engine process ended"):
        failed[0].result()
    kept = answers.index(failed[0]) ^ 1
    assert begun[kept] + answers[kept].result() == "".join(f"{'ab'[kept]}{n} " for n in range(500))
    _within(PATIENCE, lambda: _engines(server).get("engine.sock.1", 0) not in (0, before["engine.sock.1"]))
    assert _engines(server)["engine.sock"] == before["engine.sock"]


def test_a_server_without_any_replica_is_not_ready(two_replicas: Served) -> None:
    """And it is again with the first that comes back."""
    server = two_replicas
    sockets = [server.run / "engine.sock", server.run / "engine.sock.1"]
    for number, socket in enumerate(sockets):
        socket.rename(server.run / f"former.{number}")
        socket.touch()  # no engine can bind it: none comes back until the test says so
    for pid in _engines(server).values():
        os.kill(pid, signal.SIGKILL)
    _within(PATIENCE, lambda: server.ready() == 400)
    status, body = server.post("minimax_m2/generate", text_input="t")
    assert status != 200
    assert "UNAVAILABLE" in body
    sockets[1].unlink()
    _within(PATIENCE, lambda: server.ready() == 200)
    assert server.generate(text_input="t", max_tokens=2)["text_output"] == "t0 t1 "
    run = server.run
    assert server.stop(signal.SIGINT) == 0
    assert not marked("MM2C_SERVE_RUN", str(run))
    assert not run.exists()


@pytest.fixture(scope="module")
def attention_dp(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two replicas of two attention groups each."""
    bundle = tmp_path_factory.mktemp("served") / "tiny-m2-dp4-ep2"
    build_bundle(BuildRequest(source=str(tiny_m2), output=bundle, dp=4, ep=2, context=512, max_rows=2))
    server = Served(bundle, tmp_path_factory.mktemp("dp-server"))
    yield server
    server.stop()


def test_attention_groups_of_two_replicas_answer_together_as_alone(attention_dp: Served) -> None:
    server = attention_dp
    alone = [server.stream(**_fields(question)).whole() for question in QUESTIONS]
    before = replica_stats(server.run / "engine.sock")["generated_tokens"]
    with ThreadPoolExecutor(len(QUESTIONS)) as threads:
        wholes = list(threads.map(lambda fields: server.stream(**fields).whole(), map(_fields, QUESTIONS)))
    assert [whole.token_ids for whole in wholes] == [whole.token_ids for whole in alone]
    assert [whole.text for whole in wholes] == [whole.text for whole in alone]
    stats = replica_stats(server.run / "engine.sock")
    assert len(stats["replicas"]) == 2
    assert [len(replica["groups"]) for replica in stats["replicas"]] == [2, 2]
    assert all(replica["generated_tokens"] > 0 for replica in stats["replicas"])
    assert stats["generated_tokens"] - before == TOKENS * len(QUESTIONS)
    most = max(int(rows) for replica in stats["replicas"] for rows in replica["rows_histogram"])
    assert most > 2, "no step had more rows than one group decodes"


def _fields(question: str) -> dict[str, Any]:
    messages = json.dumps([{"role": "user", "content": question}])
    options = {"ignore_eos": True, "temperature": 0.0, "return_token_ids": True}
    return {"messages": messages, "max_tokens": TOKENS, **options}
