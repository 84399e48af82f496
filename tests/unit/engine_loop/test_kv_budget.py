"""The KV budget: what it is, what does not fit into memory, and admission that keeps to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_bundle_files import MANIFEST
from toy_engine import Listener, ToyExecutor, toy_engine

from mm2c_runtime import memory
from mm2c_runtime.bundle import Bundle
from mm2c_runtime.errors import BundleError, RequestError
from mm2c_runtime.manifest import Limits, Manifest
from mm2c_runtime.memory import check_memory, kv_budget, needed
from mm2c_runtime.requests import parse_request

LIMITS = Limits(context=32, max_rows=2, prefill_chunk=8)
MIB = 2**20


def manifest(*, in_place: bool = True) -> Manifest:
    outputs = ["logits", *(f"{side}_cache_out.{layer}" for layer in range(4) for side in "kv")]
    rank = {
        "rank": 0,
        "segments": [{"file": "a.onnx", "inputs": [], "outputs": outputs}],
        "collectives": [],
        "weights": "w",
        "kv": {"layers": 4, "kv_heads": 2, "head_dim": 4096, "dtype": "f32"},
    }
    ranks = [rank, {**rank, "rank": 1, "weights": "v"}]
    files = {name: {"sha256": "", "bytes": 3 * MIB} for name in "wv"}
    lowerings = {"fast": {"ranks": ranks, "in_place": in_place, "padded": True}}
    return Manifest.model_validate({**MANIFEST, "lowerings": lowerings, "files": files})


def available(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: size)


def test_the_budget_is_asked_for_or_set_or_every_row_full() -> None:
    assert kv_budget(None, LIMITS, {}) == 64
    assert kv_budget(None, LIMITS, {"MM2C_KV_TOKENS": ""}) == 64
    assert kv_budget(None, LIMITS, {"MM2C_KV_TOKENS": "40"}) == 40
    assert kv_budget(20, LIMITS, {"MM2C_KV_TOKENS": "40"}) == 20
    assert kv_budget(1000, LIMITS, {}) == 64
    for asked, environment in ((0, {}), (-1, {}), (None, {"MM2C_KV_TOKENS": "many"})):
        with pytest.raises(BundleError, match="not a whole number of tokens of at least 1") as caught:
            kv_budget(asked, LIMITS, environment)
        assert caught.value.where in ("kv_tokens", "$MM2C_KV_TOKENS")


def test_what_is_needed() -> None:
    one = needed(Path(), manifest(), manifest().lowerings["fast"])
    assert (one.weights, one.copies) == (6 * MIB, 0)
    assert one.per_token == 2 * 2 * 4 * 2 * 4096 * 4  # ranks, K and V, layers, heads, head_dim, f32
    copying = needed(Path(), manifest(in_place=False), manifest(in_place=False).lowerings["fast"])
    assert copying.copies == 64 * one.per_token // 2  # one rank's at a time


def test_too_large_for_the_memory_is_refused_with_figures_and_a_budget_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    available(monkeypatch, 16 * MIB)  # 6 of weights; half a MiB a token
    check_memory(Path("b"), manifest(), "fast", 20)
    with pytest.raises(BundleError) as caught:
        check_memory(Path("b"), manifest(), "fast", 64)
    assert "needs 0.04 GiB of memory and 0.02 GiB are available" in caught.value.what
    assert "64 tokens of KV cache (built for 2 rows of 32 tokens)" in caught.value.what
    assert "kv_tokens=20 or less (MM2C_KV_TOKENS=20)" in caught.value.remedy
    assert "--max-rows" in caught.value.remedy
    available(monkeypatch, 5 * MIB)
    with pytest.raises(BundleError) as caught:
        check_memory(Path("b"), manifest(), "fast", 1)
    assert "more than 0.01 GiB of free memory" in caught.value.remedy
    available(monkeypatch, None)
    check_memory(Path("b"), manifest(), "fast", 64)


def test_load_asks_before_it_reads_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").write_text(manifest().model_dump_json())
    available(monkeypatch, 16 * MIB)
    with pytest.raises(BundleError, match="are available: "):
        Bundle.load(tmp_path)
    monkeypatch.setenv("MM2C_KV_TOKENS", "20")
    with pytest.raises(
        BundleError, match="w cannot be read"
    ):  # it fits; the files of this bundle are missing
        Bundle.load(tmp_path)
    with pytest.raises(BundleError, match="are available: "):
        Bundle.load(tmp_path, kv_tokens=21)


def test_the_system_is_asked(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 10 kB\nMemAvailable:   7 kB\n")
    assert memory._meminfo(tmp_path / "meminfo") == 7 * 1024
    assert memory._meminfo(tmp_path / "gone") is None
    for name, text in (("max", "1000"), ("current", "600"), ("stat", "anon 1\ninactive_file 50\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory._cgroup(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._cgroup(tmp_path) is None
    assert (memory.available_bytes() or 0) > 2**20  # this process runs in it


def ask(engine: Any, listener: Listener, request_id: str, prompt: str, **options: Any) -> None:
    engine.submit(request_id, parse_request({"text_input": prompt, **options}), listener)


def test_a_request_beyond_the_budget_is_refused_and_one_beyond_what_is_left_waits() -> None:
    engine, listener = toy_engine(ToyExecutor(rows=4, context=128, delay=0.002), kv_tokens=40), Listener()
    with pytest.raises(
        RequestError, match=r"INVALID_ARGUMENT: max_tokens: 39 .*KV budget \(kv_tokens\) of 40; at"
    ):
        ask(engine, listener, "never", "xy", max_tokens=39)
    with pytest.raises(RequestError, match=r"the prompt has 41 tokens; the KV budget \(kv_tokens\) holds 40"):
        ask(engine, listener, "never", "x" * 41)
    for number in range(6):
        ask(engine, listener, str(number), "xy", max_tokens=18, ignore_eos=True)
    ask(engine, listener, "rest", "xy", ignore_eos=True)
    assert all(listener.wait(str(number))["finish_reason"] == "length" for number in range(6))
    assert listener.wait("rest")["num_output_tokens"] == 38
    assert max(int(rows) for rows in engine.stats()["rows_histogram"]) == 2
    engine.close()


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=12), st.integers(24, 40)
)
def test_running_requests_never_hold_more_than_the_budget(sizes: list[tuple[int, int]], budget: int) -> None:
    from mm2c_runtime.kv import RowPool
    from mm2c_runtime.scheduling.scheduler import Scheduler
    from mm2c_runtime.scheduling.sequence import Sequence
    from mm2c_runtime.step import RowResult, StepResult

    scheduler = Scheduler(RowPool(4, 40, budget), prefill_chunk=5)
    left = [Sequence(str(n), [1] * prompt, answer) for n, (prompt, answer) in enumerate(sizes)]
    for sequence in left:
        scheduler.add(sequence)
    while (batch := scheduler.next_batch()) is not None:
        assert sum(s.tokens for s in left if s.row >= 0) <= budget
        scheduler.apply(StepResult(0, [RowResult(row.row, 1 if row.sample else None) for row in batch.rows]))
    assert all(len(sequence.generated) == sequence.max_tokens for sequence in left)
