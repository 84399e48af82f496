"""The cuda executor of one of two attention groups: what it exchanges, and what an idle group leaves alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_program import (
    CHUNK,
    PAGE,
    ROWS,
    VOCAB,
    WIDTH,
    ToyOps,
    expected,
    node,
    program,
    write_bundle,
)

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.batch import Together, together
from mm2c_runtime.executors.cuda import CudaExecutor
from mm2c_runtime.executors.cuda.collectives import SingleRank
from mm2c_runtime.manifest import Limits, Manifest
from mm2c_runtime.step import RowStep, SamplingParams, StepBatch

GREEDY = SamplingParams(temperature=0.0)
LIMITS = Limits(context=64, max_rows=ROWS, prefill_chunk=CHUNK)


class OtherGroup(SingleRank):
    """The other rank exchanges tokens of its own, zeros; what comes back is this rank's part of the sum."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.ranks, self.tokens = rank, 2, []

    def all_gather(self, x: torch.Tensor, axis: int, group: tuple[int, ...]) -> torch.Tensor:
        assert (axis, group) == (0, (0, 1))
        self.tokens.append(x.shape[0])
        parts = [torch.zeros_like(x), torch.zeros_like(x)]
        parts[self.rank] = x
        return torch.cat(parts)

    def reduce_scatter(self, x: torch.Tensor, axis: int, group: tuple[int, ...]) -> torch.Tensor:
        assert (axis, group) == (0, (0, 1))
        assert x.shape == (2 * self.tokens[-1], WIDTH)
        return x.chunk(2)[self.rank]


def together_program() -> dict[str, Any]:
    """``program`` with its doubling done on the tokens of all groups."""
    raw = program()
    raw["inputs"].insert(4, "step_tokens")
    raw["constants"] |= {
        "none": {"dtype": "i64", "shape": [1], "data": [0]},
        "axis0": {"dtype": "i64", "shape": [1], "data": [0]},
        "flat": {"dtype": "i64", "shape": [2], "data": [-1, WIDTH]},
    }
    groups = {"groups": [0, 1], "group_size": 2, "axis": 0, "reduce_op": "sum", "root": -1, "nb_rank": 2}
    exchange = [
        node("Reshape", "flatten", ["summed", "flat"], ["tokens"]),
        node("Shape", "count", ["tokens"], ["own"], start=0, end=1),
        node("Sub", "missing", ["step_tokens", "own"], ["more"]),
        node("Concat", "pads", ["none", "more"], ["padding"], axis=0),
        node("Pad", "pad", ["tokens", "padding", "", "axis0"], ["padded"]),
        node("DistCollective", "gather", ["padded"], ["all"], collective_operation="all_gather", **groups),
        node("Mul", "double", ["all", "two"], ["work"]),
        node(
            "DistCollective", "scatter", ["work"], ["back"], collective_operation="reduce_scatter", **groups
        ),
        node("Slice", "cut", ["back", "none", "own", "axis0"], ["mine"]),
        node("Shape", "shape", ["summed"], ["wide"]),
        node("Reshape", "unflatten", ["mine", "wide"], ["doubles"]),
    ]
    kept = [n for n in raw["nodes"] if n["name"] != "double"]
    place = next(index for index, n in enumerate(kept) if n["name"] == "attend") + 1
    raw["nodes"] = [*kept[:place], *exchange, *kept[place:]]
    for changed in raw["nodes"]:
        if changed["name"] == "pick":
            changed["inputs"][0] = "doubles"
        if changed["name"] == "head":
            changed["inputs"][0] = "last"
    raw["ranks"] = 2
    return raw


def write_groups(folder: Path) -> Manifest:
    manifest = write_bundle(folder)
    raw = together_program()
    ranks = []
    for rank in range(2):
        (folder / f"rank{rank}").mkdir(exist_ok=True)
        (folder / f"rank{rank}/cuda.json").write_text(json.dumps({**raw, "rank": rank}))
        own = {"rank": rank, "program": f"rank{rank}/cuda.json", "weights": "rank0/weights.safetensors"}
        ranks.append({**manifest.cuda.ranks[0].model_dump(), **own})
    changed = manifest.model_dump()
    changed["cuda"]["ranks"], changed["mapping"] = ranks, {"tp": 1, "ep": 2, "dp": 2}
    return Manifest.model_validate(changed)


@pytest.fixture(params=[0, 1])
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CudaExecutor]:
    made = CudaExecutor(
        tmp_path,
        write_groups(tmp_path),
        rank=request.param,
        collectives=OtherGroup(request.param),
        device="cpu",
        ops=ToyOps(),
    )
    made._collectives.tokens.clear()
    yield made
    made.close()


def prefill(row: int, tokens: list[int], blocks: list[int], past: int = 0) -> StepBatch:
    one = RowStep(row, tokens, past, len(tokens), True, sampling=None if past else GREEDY, blocks=blocks)
    return StepBatch(0, "prefill", [one])


def decode(tokens: list[int], pasts: list[int]) -> StepBatch:
    rows = [RowStep(i, [t], p, 1, True) for i, (t, p) in enumerate(zip(tokens, pasts, strict=True))]
    return StepBatch(1, "decode", rows)


def run(executor: CudaExecutor, own: StepBatch | None, other: StepBatch | None) -> Any:
    batches = [other, other]
    batches[executor.group] = own
    return executor.steps(batches)[executor.group]


def test_all_groups_exchange_as_many_tokens_as_the_one_that_has_most(executor: CudaExecutor) -> None:
    exchanged = executor._collectives.tokens
    assert run(executor, prefill(0, [1, 2], [3]), prefill(0, [1] * 5, [0])).rows[0].token == best([1, 2])
    assert run(executor, prefill(1, [4] * 5, [4, 5]), None).rows[0].token == best([4] * 5)
    assert run(executor, None, prefill(0, [1] * 6, [0])) is None
    first, second = run(executor, decode([5, 6], [2, 5]), decode([1] * 9, [1] * 9)).rows
    assert (first.token, second.token) == (best([1, 2, 5]), best([4, 4, 4, 4, 4, 6]))
    assert run(executor, decode([3, 3], [3, 6]), prefill(0, [1] * 6, [0])).rows[0].token == best([1, 2, 5, 3])
    assert run(executor, None, decode([1], [1])) is None
    assert exchanged == [5, 5, 6, 12, 6, 1]  # nine rows are run as twelve by both
    assert executor.kv.groups == 2
    assert executor.kv.rows == ROWS + 1


def best(tokens: list[int]) -> int:
    return int(expected(tokens).argmax())


def test_an_idle_group_writes_nothing_that_is_held(executor: CudaExecutor) -> None:
    for row in range(3):
        run(executor, prefill(row, [row + 1] * 4, [row]), None)
    held = [cache[: executor.kv.pages].clone() for cache in executor._stepper.places.caches]
    assert len(executor._stepper.places.caches[0]) == executor.kv.pages + 1
    for other in (prefill(0, [1] * 6, [0]), decode([1] * 4, [2] * 4)):
        assert run(executor, None, other) is None
    for cache, before in zip(executor._stepper.places.caches, held, strict=True):
        assert torch.equal(cache[: executor.kv.pages], before)
    assert executor.forward_seconds > 0


def test_a_refused_batch_fails_after_the_step(executor: CudaExecutor) -> None:
    """The other group waits in its collectives: a dummy row is run in place of what was refused."""
    exchanged = executor._collectives.tokens
    run(executor, prefill(0, [1, 2], [3]), None)
    for wrong, message in (
        (prefill(0, [VOCAB], [1]), "outside the vocabulary"),
        (decode([1], [10 * PAGE]), "places"),
        (decode([], []), "at least one row"),
    ):
        with pytest.raises(ValueError, match=message):
            run(executor, wrong, prefill(0, [1] * 4, [0]))
        assert exchanged[-1] == 4
    assert run(executor, decode([5], [2]), None).rows[0].token == best([1, 2, 5])
    rows = [RowStep(n, [1] * CHUNK, 0, CHUNK, True, sampling=GREEDY, blocks=[4 + n]) for n in range(3)]
    with pytest.raises(ValueError, match="a joint step takes at most"):
        run(executor, StepBatch(0, "prefill", rows), None)


def test_logits_of_a_group(executor: CudaExecutor) -> None:
    batches: list[StepBatch | None] = [None, None]
    batches[executor.group] = prefill(0, [1, 2, 3], [0])
    found = executor.forwards(batches)
    np.testing.assert_array_equal(found[executor.group][0], expected([1, 2, 3]))
    assert found[1 - executor.group] is None


def test_a_program_that_exchanges_tokens_is_for_groups(tmp_path: Path) -> None:
    manifest = write_groups(tmp_path)
    one = manifest.model_copy(update={"mapping": manifest.mapping.model_copy(update={"ep": 1, "tp": 2})})
    with pytest.raises(BundleError, match="exchange of tokens between groups is True, the manifest's False"):
        CudaExecutor(tmp_path, one, collectives=OtherGroup(0), device="cpu", ops=ToyOps())


def test_what_groups_agree_on() -> None:
    assert together([None, None], LIMITS) == Together(1, decode=True)
    assert together([None, decode([1, 2, 3], [1, 1, 1])], LIMITS) == Together(3, decode=True)
    assert together([prefill(0, [1] * 5, []), decode([1], [1])], LIMITS) == Together(5, decode=False)
    endless = StepBatch(0, "decode", [RowStep(n, [1], 1, 1, True) for n in range(500)])
    assert together([endless, None], LIMITS) == Together(ROWS, decode=True)
    assert together([prefill(0, [1] * 500, []), StepBatch(0, "decode", [])], LIMITS).tokens == max(
        CHUNK, ROWS
    )
