"""The best logits of each chunk of the vocabulary, as sortable keys (first half of M2Sample)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from mm2c_plugins.kernels.catalogue import Variant

PARAMETERS = {
    "logits": "*fp32",
    "mask": "*i32",
    "keys": "*i64",
    "flags": "*i32",
    "V": "i32",
    "W": "i32",
    "use_mask": "i32",
}
NO_TOKEN = tl.constexpr(-(2**63))  # the key of a forbidden or missing token, below all others


@triton.jit
def sample_chunks(
    logits,
    mask,
    keys,
    flags,
    V,
    W,
    use_mask,
    CHUNK: tl.constexpr,
    KC: tl.constexpr,
    PDL: tl.constexpr,
):
    """keys i64[R, P, KC], descending, of the KC best of each CHUNK of logits f32[R, V]. Grid (P = ⌈V/CHUNK⌉, R).

    A key holds the logit in its upper 32 bits, mapped so that integers compare as the floats do (-0 as +0), and
    0x7fffffff - id in the lower ones: greater keys are higher logits, and lower ids where logits are equal. Where
    use_mask is not 0, bit id % 32 of word id // 32 of mask i32[R, W] tells whether the id is allowed; forbidden ones
    get NO_TOKEN. flags i32[R, P]: 1 where a logit of the chunk, allowed or not, is NaN or infinite, else 0.
    """
    chunk = tl.program_id(0)
    r = tl.program_id(1)
    v = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = v < V
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    value = tl.load(logits + r.to(tl.int64) * V + v, mask=inside, other=0.0)
    bits = value.to(tl.int32, bitcast=True)
    infinite = (bits & 0x7F800000) == 0x7F800000
    allowed = inside & (infinite == 0)
    if use_mask != 0:
        word = tl.load(mask + r.to(tl.int64) * W + v // 32, mask=inside, other=0)
        allowed = allowed & (((word >> (v % 32)) & 1) == 1)
    bits = tl.where(value == 0.0, 0, bits)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - v).to(tl.int64)
    key = tl.where(allowed, key, NO_TOKEN)
    if KC == 1:
        best = tl.max(key, axis=0) + tl.zeros((1,), tl.int64)
    else:
        best = tl.topk(key, KC)
    place = r.to(tl.int64) * tl.num_programs(0) + chunk
    tl.store(keys + place * KC + tl.arange(0, KC), best)
    tl.store(flags + place, tl.max(infinite.to(tl.int32), axis=0))


def variants(sm: int, tiles: Mapping[str, list[dict[str, Any]]]) -> list[Variant]:
    return [
        Variant(
            kernel="sample_chunks",
            name=f"sample_chunks.chunk{row['CHUNK']}.kc{row['KC']}.w{row['num_warps']}",
            constants={"CHUNK": int(row["CHUNK"]), "KC": int(row["KC"]), "PDL": sm >= 90},
            num_warps=int(row["num_warps"]),
            num_stages=int(row["num_stages"]),
        )
        for row in tiles.get("sample_chunks", [])
    ]
