"""The token of each row from the best keys of its chunks (second half of M2Sample)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from mm2c_plugins.kernels.catalogue import Variant
from mm2c_plugins.kernels.sample_chunks import NO_TOKEN

PARAMETERS = {
    "keys": "*i64",
    "flags": "*i32",
    "temperature": "*fp32",
    "top_k": "*i32",
    "top_p": "*fp32",
    "min_p": "*fp32",
    "uniform": "*i64",
    "tokens": "*i32",
    "status": "*i32",
    "P": "i32",
}


@triton.jit
def sample_pick(
    keys,
    flags,
    temperature,
    top_k,
    top_p,
    min_p,
    uniform,
    tokens,
    status,
    P,
    GROUP: tl.constexpr,
    KC: tl.constexpr,
    PDL: tl.constexpr,
):
    """tokens i32[R], status i32[R] from sample_chunks' keys i64[R, P, KC] and flags i32[R, P]. Grid (R).

    temperature, top_p, min_p f32[R], top_k i32[R] in 1..KC, uniform i64[R]: the bits of f64 numbers in [0, 1).
    Temperature 0, or KC = 1: the best token. Else the draw of mm2c_runtime.sampling.draw, step by step in f64 and with
    its roundings: weights exp((logit - highest) / temperature), their sums made one after the other, the shortest
    prefix with top_p of the sum, those of at least min_p, the first whose sum exceeds uniform times the whole. Only
    exp may differ from the CPU's, in the last place: the token then differs where a sum and what it is compared with
    are that close. status: 0, 1 where a logit was not finite, 2 where no token is allowed; the token is then -1.
    GROUP chunks are looked at together.
    """
    r = tl.program_id(0).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    group = tl.arange(0, GROUP)
    infinite = 0
    for p in range(0, P, GROUP):
        infinite |= tl.max(tl.load(flags + r * P + p + group, mask=p + group < P, other=0), axis=0)

    at = tl.arange(0, GROUP * KC)
    if KC == 1:
        best = tl.full((GROUP * KC,), NO_TOKEN, tl.int64)
        for p in range(0, P, GROUP):
            best = tl.maximum(best, tl.load(keys + r * P + p + at, mask=at < P - p, other=NO_TOKEN))
        first = tl.max(best, axis=0)
        chosen = first
    else:
        best = tl.full((KC,), NO_TOKEN, tl.int64)
        for p in range(0, P, GROUP):
            some = tl.load(keys + (r * P + p) * KC + at, mask=at < (P - p) * KC, other=NO_TOKEN)
            # Both descend: against each other they rise and fall, and the greater of each pair are the best.
            best = tl.sort(tl.maximum(best, tl.flip(tl.topk(some, KC))), descending=True)
        first = tl.max(best, axis=0)
        chosen = first
        heat = tl.load(temperature + r)
        if (heat > 0.0) & (first != NO_TOKEN):
            chosen = _drawn(best, first, heat, top_k + r, top_p + r, min_p + r, uniform + r, KC)
    failure = tl.where(infinite != 0, 1, tl.where(first == NO_TOKEN, 2, 0))
    token = 0x7FFFFFFF - (chosen & 0x7FFFFFFF).to(tl.int32)
    tl.store(tokens + r, tl.where(failure == 0, token, -1))
    tl.store(status + r, failure)


@triton.jit
def _drawn(best, first, temperature, top_k, top_p, min_p, uniform, KC: tl.constexpr):
    """The drawn key of best i64[KC], which descends from ``first``; those of no token are at its end.

    Numbers are read where they are needed: the division is a call, and what is alive across it may be spilled.
    """
    rank = tl.arange(0, KC)
    weight = tl.exp((_logit(best) - _logit(first)) / temperature.to(tl.float64))
    candidate = (rank < tl.load(top_k)) & (best != NO_TOKEN)
    weight = tl.where(candidate, weight, 0.0)
    # One after the other, as numpy's cumsum. Weights are taken out as integers: f64 additions are slow on some GPUs.
    bits = weight.to(tl.int64, bitcast=True)
    whole = tl.sum(tl.where(rank == 0, bits, 0), axis=0).to(tl.float64, bitcast=True)
    sums = tl.where(rank == 0, whole, 0.0)
    for i in tl.static_range(1, KC):
        whole += tl.sum(tl.where(rank == i, bits, 0), axis=0).to(tl.float64, bitcast=True)
        sums = tl.where(rank == i, whole, sums)
    least = tl.load(top_p)
    share = least.to(tl.float64) * whole
    by_share = tl.sum((candidate & (sums < share)).to(tl.int32), axis=0) + 1
    by_share = tl.where(least >= 1.0, KC, by_share)
    by_ratio = tl.sum((candidate & (weight >= tl.load(min_p).to(tl.float64))).to(tl.int32), axis=0)
    count = tl.sum(candidate.to(tl.int32), axis=0)
    kept = tl.maximum(tl.minimum(tl.minimum(by_share, by_ratio), count), 1)
    target = tl.load(uniform).to(tl.float64, bitcast=True) * tl.sum(
        tl.where(rank == kept - 1, sums, 0.0), axis=0
    )
    place = tl.sum(((rank < kept) & (sums <= target)).to(tl.int32), axis=0)
    place = tl.minimum(place, kept - 1)
    return tl.sum(tl.where(rank == place, best, 0), axis=0)


@triton.jit
def _logit(key):
    """The f64 value of a key's logit."""
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True).to(tl.float64)


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    return [
        Variant(
            kernel="sample_pick",
            name=f"sample_pick.group{row['GROUP']}.kc{row['KC']}.w{row['num_warps']}",
            constants={"GROUP": int(row["GROUP"]), "KC": int(row["KC"]), "PDL": sm >= 90},
            num_warps=int(row["num_warps"]),
            num_stages=int(row["num_stages"]),
        )
        for row in tiles.get("sample_pick", [])
    ]
