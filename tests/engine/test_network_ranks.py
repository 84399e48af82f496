"""Collectives of the network replay: ranks in lockstep, and what is refused."""

from __future__ import annotations

from typing import Any

import networks as nets
import pytest
import torch
from onnx import ModelProto, helper

node = helper.make_node
F32, BF16 = torch.float32, torch.bfloat16


def collective(
    source: str,
    target: str,
    operation: str = "all_reduce",
    ranks: int = 4,
    groups: tuple[tuple[int, ...], ...] = (),
    **other: Any,
) -> Any:
    flat = [rank for group in groups for rank in group] or list(range(ranks))
    size = len(groups[0]) if groups else ranks
    reduce = "sum" if operation != "all_gather" else "none"
    attributes: dict[str, Any] = {"reduce_op": reduce, "root": -1, "nb_rank": ranks, "axis": 0} | other
    return node(
        "DistCollective", [source], [target], name=target, domain="mm2c", collective_operation=operation,
        groups=flat, group_size=size, **attributes,
    )  # fmt: skip


def chain(*, dtype: torch.dtype = F32, gather: bool = True) -> ModelProto:
    """y = the sum over ranks of 2x, then what every rank has of it, one below the other."""
    x = torch.zeros(2, 3, dtype=dtype)
    nodes = [node("Add", ["x", "x"], ["twice"]), collective("twice", "sum")]
    nodes.append(collective("sum", "y", "all_gather") if gather else node("Identity", ["sum"], ["y"]))
    return nets.model_of(nodes, {"x": x}, {"y": dtype})


def ranks_of(count: int, dtype: torch.dtype = F32) -> list[dict[str, torch.Tensor]]:
    return [
        {"x": torch.randn(2, 3, generator=torch.Generator().manual_seed(r)).to(dtype)} for r in range(count)
    ]


def test_four_ranks_add_and_gather() -> None:
    from mm2c.verify.network import run_ranks

    feeds = ranks_of(4)
    model = chain()
    for replay in (nets.replay_of(model), nets.replay_of(model, feeds[0])):
        found = run_ranks([replay] * 4, feeds)
        total = sum(2 * feed["x"] for feed in feeds)
        assert all(torch.allclose(one["y"], torch.cat([total] * 4)) for one in found)


def test_sums_of_bf16_are_rounded_once() -> None:
    from mm2c.verify.network import run_ranks

    feeds = ranks_of(4, BF16)
    found = run_ranks([nets.replay_of(chain(dtype=BF16, gather=False))] * 4, feeds)
    twice = [feed["x"] + feed["x"] for feed in feeds]
    assert torch.equal(found[2]["y"], sum(x.float() for x in twice).to(BF16))  # type: ignore[union-attr]


def test_groups_exchange_among_themselves() -> None:
    from mm2c.verify.network import run_ranks

    x = torch.zeros(2, 3)
    model = nets.model_of([collective("x", "y", ranks=2, groups=((0, 2), (3, 1)))], {"x": x}, {"y": F32})
    feeds = ranks_of(4)
    found = run_ranks([nets.replay_of(model)] * 4, feeds)
    for rank, peer in ((0, 2), (2, 0), (1, 3), (3, 1)):
        assert torch.allclose(found[rank]["y"], feeds[rank]["x"] + feeds[peer]["x"])


def test_a_gather_follows_the_order_of_its_group() -> None:
    from mm2c.verify.network import run_ranks

    x = torch.zeros(1, 3)
    model = nets.model_of([collective("x", "y", "all_gather", 2, groups=((1, 0),))], {"x": x}, {"y": F32})
    feeds = [{"x": torch.full((1, 3), float(rank))} for rank in range(2)]
    assert run_ranks([nets.replay_of(model)] * 2, feeds)[0]["y"][:, 0].tolist() == [1.0, 0.0]


def test_ranks_that_do_not_meet_are_an_error() -> None:
    from mm2c.verify.network import ReplayError, run_ranks

    x = torch.zeros(2, 3)
    one = nets.replay_of(nets.model_of([collective("x", "y", ranks=2)], {"x": x}, {"y": F32}))
    other = nets.replay_of(nets.model_of([collective("x", "z", ranks=2)], {"x": x}, {"z": F32}))
    longer = [collective("x", "y", ranks=2), collective("y", "z", ranks=2)]
    more = nets.replay_of(nets.model_of(longer, {"x": x}, {"z": F32}))
    with pytest.raises(ReplayError, match="rank 0 waits in y while rank 1 waits in z"):
        run_ranks([one, other], [{"x": x}] * 2)
    with pytest.raises(ReplayError, match="some ranks are at their end"):
        run_ranks([one, more], [{"x": x}] * 2)
    with pytest.raises(ReplayError, match="there are 3 ranks"):
        run_ranks([one] * 3, [{"x": x}] * 3)
    with pytest.raises(ReplayError, match="unlike tensors"):
        run_ranks([one] * 2, [{"x": x}, {"x": torch.zeros(1, 3)}])


def test_one_rank_alone_needs_someone_to_answer() -> None:
    from mm2c.verify.network import ReplayError

    replay = nets.replay_of(chain())
    x = torch.randn(2, 3)
    with pytest.raises(ReplayError, match="there are none"):
        replay.run({"x": x})
    asked = []

    def answer(call: Any, tensor: torch.Tensor) -> torch.Tensor:
        asked.append((call.name, call.operation, call.groups))
        return tensor * 4 if call.operation == "all_reduce" else tensor.repeat(4, 1)

    assert torch.allclose(replay.run({"x": x}, collectives=answer)["y"], (8 * x).repeat(4, 1))
    assert asked == [("sum", "all_reduce", ((0, 1, 2, 3),)), ("y", "all_gather", ((0, 1, 2, 3),))]


def test_an_answer_of_another_shape_is_an_error() -> None:
    from mm2c.verify.network import ReplayError

    x = torch.randn(2, 3)
    with pytest.raises(ReplayError, match=r"declared as FLOAT \[8, 3\]"):
        nets.replay_of(chain(), {"x": x}).run({"x": x}, collectives=lambda call, tensor: tensor)


@pytest.mark.parametrize(
    ("operation", "other", "why"),
    [
        ("all_gather", {"axis": -1}, "axis -1"),
        ("reduce_scatter", {}, "reduce_scatter"),
        ("all_reduce", {"reduce_op": "max"}, "max"),
    ],
)
def test_collectives_that_are_not_evaluated_are_refused(
    operation: str, other: dict[str, Any], why: str
) -> None:
    from mm2c.verify.network import UnknownLayer

    x = torch.zeros(4, 3)
    model = nets.model_of([collective("x", "y", operation, 4, **other)], {"x": x}, {"y": F32})
    with pytest.raises(UnknownLayer, match=why):
        nets.replay_of(model)


def test_a_collective_of_which_nothing_is_known_is_refused() -> None:
    from mm2c.verify.network import NetworkReplay, UnknownLayer
    from mm2c.verify.network.calls import Collective

    parsed = nets.parse(chain())
    with pytest.raises(UnknownLayer, match="collectives_of"):
        NetworkReplay(nets.rtx(), parsed.network)
    said = {
        "sum": Collective("all_reduce", "sum", ((0, 1),)),
        "y": Collective("all_gather", "sum", ((0, 1, 2, 3),)),
    }
    with pytest.raises(UnknownLayer, match="4 ranks for groups"):
        NetworkReplay(nets.rtx(), parsed.network, said)
