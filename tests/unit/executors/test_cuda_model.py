"""A rank program as it is run: what is computed at load, on the host, and between ranks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_program import ToyOps, embeddings, expected, head, node, program, write

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.collectives import SingleRank, join_group, node_groups
from mm2c_runtime.executors.cuda.model import RankModel
from mm2c_runtime.executors.cuda.program import read_program

CPU = torch.device("cpu")
WEIGHTS = {"embed": embeddings(), "lm_head": head()}


def model_of(folder: Path, raw: dict[str, Any], collectives: Any = None) -> RankModel:
    return RankModel(read_program(write(folder, raw)), WEIGHTS, ToyOps(), collectives or SingleRank(), CPU)


def run(model: RankModel, tokens: list[int]) -> Any:
    caches = [torch.zeros(3, 4, 1, 4, dtype=torch.bfloat16) for _ in range(2)]
    table = torch.tensor([[2, 1, 0]], dtype=torch.int32)
    lengths = [torch.tensor([n], dtype=torch.int32) for n in (0, len(tokens))]
    return model.run(torch.tensor([tokens]), *lengths, table, caches)


def test_what_hangs_on_weights_alone_is_computed_once(tmp_path: Path) -> None:
    raw = program()
    raw["nodes"][0]["inputs"][0] = "again"
    raw["nodes"][:0] = [
        node("Transpose", "t", ["embed"], ["turned"]),
        node("Transpose", "u", ["turned"], ["again"]),
        node("Shape", "s", ["turned"], ["size"]),
        node("Concat", "c", ["size", "axis"], ["sizes"], axis=0),
    ]
    model = model_of(tmp_path, raw)
    assert len(model._steps) == len(program()["nodes"])
    assert run(model, [1, 2, 3]).numpy().tolist() == [expected([1, 2, 3]).tolist()]


def test_sizes_never_leave_the_host(tmp_path: Path) -> None:
    raw = program()
    raw["nodes"][0]["inputs"][1] = "ids"
    raw["nodes"][:0] = [
        node("Shape", "s", ["input_ids"], ["size"], start=1),
        node("Sub", "less", ["size", "axis"], ["one_less"]),
        node("Add", "more", ["one_less", "axis"], ["same"]),
        node("Concat", "c", ["axis", "same"], ["target"], axis=0),
        node("Reshape", "r", ["input_ids", "target"], ["ids"]),
    ]
    model = model_of(tmp_path, raw)
    assert run(model, [1, 2, 3]).numpy().tolist() == [expected([1, 2, 3]).tolist()]


def test_values_are_let_go_of_after_their_last_reader(tmp_path: Path) -> None:
    model = model_of(tmp_path, program())
    let_go = [slot for step in model._steps for slot in step.last]
    assert len(let_go) == len(set(let_go)) == len(program()["nodes"]) - 1  # all but the logits
    before = [slot is None for slot in model._slots]
    run(model, [1])
    assert [slot is None for slot in model._slots] == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (node("Loop", "n", ["one"], ["x"]), "cannot run Loop on host values"),
        (node("Where", "n", ["embed", "one", "one"], ["x"]), "node n cannot be computed: Where: "),
        (node("Reshape", "n", ["embed", "axis"], ["x"]), "node n cannot be computed"),
        (node("M2DenseLinear", "n", ["embed", "embed"], ["x"]), "node n .*out_dtype"),
        (
            node("DistCollective", "n", ["embed"], ["x"], groups=[0, 1], group_size=2),
            "is for 2 ranks, 1 run it",
        ),
    ],
)
def test_nodes_that_cannot_be_run(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    raw = program()
    raw["nodes"].insert(0, change)
    with pytest.raises(BundleError, match=message):
        model_of(tmp_path, raw)


def test_an_op_that_does_not_write_its_cache_in_place_is_found_out(tmp_path: Path) -> None:
    model = model_of(tmp_path, program())
    original = ToyOps.run

    def copying(self: ToyOps, call: Any, inputs: Any) -> Any:
        out, k, v = original(self, call, inputs)
        return [out, k.clone(), v]

    model._ops.run = None  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToyOps, "run", copying)
        with pytest.raises(RuntimeError, match="in place"):
            run(model_of(tmp_path, program()), [1])


def test_groups() -> None:
    assert node_groups([0, 2, 1, 3], 2) == [(0, 2), (1, 3)]


class Recorded(SingleRank):
    """The second of two ranks; every collective doubles."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.ranks = 1, 2
        self.said: list[Any] = []

    def make_groups(self, groups: Any) -> None:
        self.said.append(("groups", groups))

    def all_reduce(self, x: torch.Tensor, group: tuple[int, ...]) -> None:
        self.said.append(("all_reduce", group))
        x.mul_(2)

    def all_gather(self, x: torch.Tensor, axis: int, group: tuple[int, ...]) -> torch.Tensor:
        self.said.append(("all_gather", group))
        return torch.cat([x, x], axis)


def collective(name: str, kind: str, x: str, y: str, groups: list[int], size: int) -> dict[str, Any]:
    return node(
        "DistCollective", name, [x], [y], collective_operation=kind, groups=groups, group_size=size, axis=-1,
        reduce_op="sum", root=-1, nb_rank=2,
    )  # fmt: skip


def test_collectives_between_ranks(tmp_path: Path) -> None:
    raw = program()
    raw["rank"], raw["ranks"] = 1, 2
    raw["nodes"][-1]["outputs"] = ["part"]
    raw["nodes"][-1]["inputs"][0] = "reduced"
    raw["nodes"][-1:-1] = [
        collective("reduce", "all_reduce", "doubled", "reduced", [0, 1], 2),
        collective("alone", "all_reduce", "doubled", "unused", [0, 1], 1),
        node("Add", "use", ["doubled", "unused"], ["kept"]),
    ]
    raw["nodes"].append(collective("gather", "all_gather", "part", "logits", [0, 1], 2))
    collectives = Recorded()
    found = run(model_of(tmp_path, raw, collectives), [1, 2])[0].numpy()
    assert found.tolist() == [*(2 * expected([1, 2])), *(2 * expected([1, 2]))]
    assert collectives.said == [("groups", [(0, 1)]), ("all_reduce", (0, 1)), ("all_gather", (0, 1))]


def test_ranks_meet_over_gloo(tmp_path: Path) -> None:
    """One rank in this process, the other in its own."""
    import subprocess
    import sys

    code = f"""
import torch
from mm2c_runtime.executors.cuda.collectives import join_group
joined = join_group(backend="gloo", store={str(tmp_path / "store")!r}, rank=1, ranks=2, device="cpu")
joined.make_groups([(0, 1), (0,), (1,)])
x = torch.full((2, 3), 2.0, dtype=torch.bfloat16)
joined.all_reduce(x, (0, 1))
joined.all_gather(torch.full((2, 1), 20.0), -1, (0, 1))
joined.least(5)
joined.close()
"""
    other = subprocess.Popen([sys.executable, "-c", code])
    joined = join_group(backend="gloo", store=str(tmp_path / "store"), rank=0, ranks=2, device="cpu")
    try:
        joined.make_groups([(0, 1), (0,), (1,)])
        x = torch.full((2, 3), 1.0, dtype=torch.bfloat16)
        joined.all_reduce(x, (0, 1))
        assert x.tolist() == [[3.0] * 3] * 2
        gathered = joined.all_gather(torch.full((2, 1), 10.0), -1, (0, 1))
        assert gathered.tolist() == [[10.0, 20.0]] * 2
        assert joined.least(7) == 5
        assert not joined.capturable
    finally:
        joined.close()
        assert other.wait(60) == 0
    assert threading.active_count() < 50
