"""Several ranks' networks in lockstep, exchanging at their collectives. Sums are made in f32 and rounded once; between
GPUs they are rounded as often as the library that makes them pleases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mm2c.verify.network.calls import CollectiveCall
from mm2c.verify.network.dtypes import Precision, widened
from mm2c.verify.network.errors import ReplayError
from mm2c.verify.network.replay import NetworkReplay, Steps


def run_ranks(
    replays: Sequence[NetworkReplay], feeds: Sequence[Mapping[str, Tensor]], precision: Precision = "declared"
) -> list[dict[str, Tensor]]:
    """The outputs of every rank; ``replays[r]`` is rank r's network (the same one, where ranks share a plan) and
    ``feeds[r]`` what it is fed. ReplayError where the ranks do not meet at the same collective."""
    ranks = [replay.steps(feed, precision) for replay, feed in zip(replays, feeds, strict=True)]
    results: list[Tensor | None] = [None] * len(ranks)
    while True:
        calls, outputs = _advance(ranks, results)
        if not calls:
            return outputs
        if outputs:
            raise ReplayError(f"some ranks are at their end while others wait in {calls[0].name}")
        results = list(exchange(calls))


def _advance(
    ranks: Sequence[Steps], results: Sequence[Tensor | None]
) -> tuple[list[CollectiveCall], list[dict[str, Tensor]]]:
    calls, outputs = [], []
    for rank, result in zip(ranks, results, strict=True):
        try:
            calls.append(next(rank) if result is None else rank.send(result))
        except StopIteration as done:
            outputs.append(done.value)
    return calls, outputs


def exchange(calls: Sequence[CollectiveCall]) -> list[Tensor]:
    """What every rank gets of the call that it waits in; ``calls[r]`` is rank r's."""
    first = calls[0]
    for rank, call in enumerate(calls):
        if (call.name, call.operation, call.reduce, call.groups) != (
            first.name,
            first.operation,
            first.reduce,
            first.groups,
        ):
            raise ReplayError(
                f"rank 0 waits in {first.name} while rank {rank} waits in {call.name}, or not alike"
            )
    if sorted(rank for group in first.groups for rank in group) != list(range(len(calls))):
        raise ReplayError(f"{first.name} has groups {first.groups}, and there are {len(calls)} ranks")
    results: dict[int, Tensor] = {}
    for group in first.groups:
        made = _combine(first, [calls[rank].tensor for rank in group])
        results.update(dict.fromkeys(group, made))
    return [results[rank] for rank in range(len(calls))]


def _combine(call: CollectiveCall, tensors: Sequence[Tensor]) -> Tensor:
    shapes = {(tuple(x.shape), x.dtype) for x in tensors}
    if len(shapes) > 1:
        raise ReplayError(f"ranks give unlike tensors to {call.name}: {sorted(map(str, shapes))}")
    if call.operation == "all_gather":
        return torch.cat(list(tensors), 0)
    total = widened(tensors[0]).clone()
    for x in tensors[1:]:
        total += widened(x)
    return total.to(tensors[0].dtype)
