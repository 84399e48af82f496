"""Attention-DP over the cuda engine's ranks, as processes over gloo: each group, with requests of its own and its own
way to choose tokens, gives what one rank alone gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_reference import SamplingOps, build_cuda_bundle
from paged_driver import GREEDY, TOLERANCE, Driver

from mm2c_runtime.executors.cuda.executor import CudaExecutor
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.ranks.executor import RankedExecutor
from mm2c_runtime.step import RowStep, SamplingParams, StepBatch

SIZES = {"context": 256, "max_rows": 6, "prefill_chunk": 48}
LAYOUTS = [{"dp": 2, "ep": 2}, {"tp": 2, "dp": 4, "ep": 4}]
PROMPTS = [[5, 90, 17, 33, 260, 8, 41], [44, 7, 500, 2], list(range(9, 60)), [1, 2, 3], [77] * 12]
pytestmark = pytest.mark.usefixtures("one_thread")


def layout_name(layout: dict[str, int]) -> str:
    return "-".join(f"{name}{size}" for name, size in layout.items())


@pytest.fixture(scope="module", params=LAYOUTS, ids=layout_name)
def ranked(
    request: pytest.FixtureRequest, tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RankedExecutor]:
    """Two groups of ranks of the cuda engine, as processes over gloo, with references for kernels."""
    folder = tmp_path_factory.mktemp("ranks")
    built = build_cuda_bundle(tiny_m2, folder / "bundle", folder / "library", **SIZES, **request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "fixtures"))
        patch.setenv("OMP_NUM_THREADS", "1")
        manifest = read_manifest(built)
        assert manifest.cuda is not None
        assert manifest.cuda.head == ("candidates" if manifest.mapping.tp > 1 else "gather")
        ranks = manifest.mapping.ranks
        executor = RankedExecutor(
            built, devices=["cpu"] * ranks, groups=2, backend="gloo", kv_tokens=512,
            ops="cuda_reference:SamplingOps",
        )  # fmt: skip
    yield executor
    executor.close()


class Groups:
    """Drives the groups of an executor, each as ``Driver`` drives one."""

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.drivers = [Driver(executor) for _ in range(executor.kv.groups)]

    def prefill(self, group: int, prompt: list[int]) -> StepBatch:
        pool = self.drivers[group].pool
        row = pool.allocate(64)
        step = RowStep(row, prompt, 0, len(prompt), True, blocks=pool.take_blocks(row), sampling=GREEDY)
        pool.advance(row, len(prompt))
        return self.drivers[group].batch("prefill", [step])

    def promote(self, group: int, row: int) -> None:
        self.drivers[group].copies += self.drivers[group].pool.promote(row)

    def steps(self, *batches: StepBatch | None) -> list[list[int | None]]:
        results = self.executor.steps(batches)
        assert all(result is None or not result.failure for result in results)
        return [[] if result is None else [row.token for row in result.rows] for result in results]


def test_ranks_of_the_cuda_engine_compute_what_one_does(ranked: RankedExecutor, cuda_bundle: Path) -> None:
    """One group prefills beside the other one's decoding, and decodes alone."""
    single = CudaExecutor(
        cuda_bundle, read_manifest(cuda_bundle), ops=SamplingOps(), device="cpu", kv_tokens=512
    )
    driver = Driver(single)
    short = [PROMPTS[0], PROMPTS[1], PROMPTS[3]]
    wanted = [[driver.prefill(prompt, 64)[1].token] for prompt in short]
    for step in range(1, 4):
        batch = driver.decode_batch([answer[-1] for answer in wanted], [step] * 3)
        for answer, row in zip(wanted, single.step(batch).rows, strict=True):
            answer.append(row.token)
    single.close()

    groups, found = Groups(ranked), [[], [], []]
    assert (ranked.kv.groups, ranked.kv.rows, ranked.kv_tokens) == (2, SIZES["max_rows"] + 1, 512)
    found[0] += groups.steps(None, groups.prefill(1, short[0]))[1]  # the first group is empty
    groups.promote(1, 0)
    tokens = groups.steps(groups.prefill(0, short[1]), groups.drivers[1].decode_batch(found[0][-1:]))
    found[1] += tokens[0]
    found[0] += tokens[1]
    groups.promote(0, 0)
    found[2] += groups.steps(groups.prefill(0, short[2]), None)[0]
    groups.promote(0, 1)
    for step in range(1, 4):
        own = groups.drivers[0].decode_batch([found[1][-1], found[2][-1]], [step] * 2)
        other = groups.drivers[1].decode_batch(found[0][-1:], [step + 1]) if step < 3 else None
        tokens = groups.steps(own, other)
        found[1].append(tokens[0][0])
        found[2].append(tokens[0][1])
        found[0] += tokens[1]
    assert found == wanted
    assert ranked.forward_seconds > 0


def test_groups_choose_tokens_each_in_its_way(ranked: RankedExecutor) -> None:
    """One group's ranks exchange their best tokens, the other's all logits, as its row asks for log probabilities:
    a seeded draw is the same either way, and beside an idle group."""
    params = SamplingParams(temperature=1.3, top_k=40, top_p=0.95, seed=5)

    def asked(prompt: list[int], logprobs: int | None) -> StepBatch:
        row = RowStep(
            0, prompt, 0, len(prompt), True, blocks=[1], sampling=params, logprobs=logprobs
        )  # fmt: skip
        return StepBatch(50, "prefill", [row], released=[0])

    first, second = PROMPTS[0], PROMPTS[4]
    found = []
    for own, other in ((None, 0), (0, None), (None, None), (0, 0)):
        results = ranked.steps([asked(first, own), asked(second, other)])
        found.append([result.rows[0].token for result in results if result is not None])
    alone = ranked.steps([None, asked(second, None)])[1]
    assert alone is not None
    assert found == [found[0]] * 4
    assert found[0][1] == alone.rows[0].token is not None


def test_a_bad_batch_of_a_group_of_ranks_fails_alone(ranked: RankedExecutor) -> None:
    wrong = RowStep(0, [5], 9999, 1, True)
    good = RowStep(0, [5, 6], 0, 2, True, blocks=[2], sampling=GREEDY)
    bad, fine = ranked.steps(
        [StepBatch(30, "decode", [wrong]), StepBatch(31, "prefill", [good], released=[0])]
    )
    assert bad is not None
    assert fine is not None
    assert "9999" in bad.failure
    assert fine.rows[0].token is not None
    again, nothing = ranked.steps([StepBatch(32, "prefill", [good], released=[0]), None])
    assert again is not None
    assert (again.rows[0].token, nothing) == (fine.rows[0].token, None)


def test_logits_of_groups_of_ranks(ranked: RankedExecutor, cuda_bundle: Path) -> None:
    single = CudaExecutor(
        cuda_bundle, read_manifest(cuda_bundle), ops=SamplingOps(), device="cpu", kv_tokens=512
    )
    prompts = [PROMPTS[0], PROMPTS[2][:20]]
    steps = [RowStep(0, p, 0, len(p), False, blocks=[1]) for p in prompts]
    batches = [StepBatch(40, "prefill", [step], released=[0]) for step in steps]
    wanted = [single.forward(batch) for batch in batches]
    for found, expected in zip(ranked.forwards(batches), wanted, strict=True):
        assert found is not None
        assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
    single.close()
