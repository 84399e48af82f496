"""How many rows fit on the ranks' devices: known before anything is allocated there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.device import Device
from mm2c_runtime.manifest import Limits, Lowering, Manifest, RankProgram
from mm2c_runtime.memory import VARIABLE, weight_bytes

MARGIN = 0.1  # of a device's memory: for CUDA itself, what sessions make of the weights, and the steps
_GIB = 2**30
log = logging.getLogger("mm2c.engine")


@dataclass(frozen=True, slots=True)
class RankNeeds:
    """Bytes on a rank's device. ``position``: of K and V of one token in all layers; ``written``: of the cache outputs
    of one token that are there at a time, because the program does not write its cache in place."""

    weights: int
    position: int
    written: int

    def total(self, rows: int, context: int) -> int:
        """With a spare row, so that two can be exchanged by copies."""
        return self.weights + ((rows + 1) * self.position + rows * self.written) * context


def device_limits(
    folder: Path,
    manifest: Manifest,
    lowering: Lowering,
    limits: Limits,
    devices: Sequence[Device],
    kv_tokens: int | None,
) -> Limits:
    """``limits`` with as many rows as hold ``kv_tokens`` tokens (of an attention group; None: all of them), or fewer
    where they do not fit and nobody asked for a number. A row is there as a whole, so its context is ``kv_tokens`` at
    most.

    Raises BundleError with the figures where they do not fit.
    """
    context, rows = limits.context, limits.max_rows
    if kv_tokens is not None:
        context = min(context, kv_tokens)
        rows = min(rows, -(-kv_tokens // context))
    fitting = rows
    for rank, device in zip(lowering.ranks, devices, strict=True):
        needs = rank_needs(folder, manifest, lowering, rank)
        found = _rows_that_fit(needs, device, context, rows)
        if found < (1 if kv_tokens is None else rows):
            raise _refusal(needs, rank.rank, device, context, rows, found, kv_tokens, manifest, where=folder)
        fitting = min(fitting, found)
    if fitting < rows:
        log.warning(
            "the KV cache has %d rows of %d tokens instead of %d: more do not fit", fitting, context, rows
        )
    chunk = min(limits.prefill_chunk, context)
    return Limits(context=context, max_rows=fitting, prefill_chunk=chunk)


def _rows_that_fit(needs: RankNeeds, device: Device, context: int, rows: int) -> int:
    row = context * (needs.position + needs.written)
    return max(0, min(rows, (_room(device) - needs.total(0, context)) // row))


def _room(device: Device) -> int:
    free, total = device.free_bytes()
    return free - int(MARGIN * total)


def _refusal(
    needs: RankNeeds,
    rank: int,
    device: Device,
    context: int,
    rows: int,
    fitting: int,
    kv_tokens: int | None,
    manifest: Manifest,
    *,
    where: Path,
) -> BundleError:
    one_row = 2 * needs.position + needs.written  # a token of it, and of the spare one
    tokens = fitting * context or (_room(device) - needs.weights) // one_row
    tokens *= manifest.mapping.attention_dp  # it is asked for all groups together
    if tokens < 1:
        remedy = (
            "build for more ranks (--tp), or serve on GPUs with more memory; `--engine cuda` keeps its cache in bf16 "
            "and needs no copies of it"
        )
    else:
        remedy = f"serve with kv_tokens={tokens} or less ({VARIABLE}={tokens})"
        if not fitting:
            remedy += ", which is then the longest context"
    total = device.free_bytes()[1]
    wanted = needs.total(1 if kv_tokens is None else rows, context)
    return BundleError(
        f"rank {rank} needs {_gib(wanted)} of memory on {device.kind}:{device.number} and "
        f"{_gib(max(0, _room(device)))} of its {_gib(total)} are available: {_gib(needs.weights)} for the weights, the "
        f"rest for {context} tokens a row of KV cache in f32 and what steps write of it "
        f"({_gib(int(MARGIN * total))} stay free for the steps)",
        where=str(where),
        remedy=remedy,
    )


def rank_needs(folder: Path, manifest: Manifest, lowering: Lowering, rank: RankProgram) -> RankNeeds:
    side = 4 * rank.kv.kv_heads * rank.kv.head_dim
    written = 0
    if not lowering.in_place:
        outputs = [sum("_cache_out." in name for name in segment.outputs) for segment in rank.segments]
        written = max(outputs, default=0) * side
    weights = weight_bytes(folder, manifest, rank.weights)
    return RankNeeds(weights, 2 * rank.kv.layers * side, written)


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"
