"""The choice of experts, shared by every kernel that routes: sigmoid scores, chosen by score + bias."""

from __future__ import annotations

import triton
import triton.language as tl

# A chosen expert's key becomes TAKEN + its place, and OUTSIDE stands where there is no expert: both are below the
# key of every number, so neither is chosen while an expert is left. One array for keys and places saves registers.
TAKEN = tl.constexpr(-(2**31))
OUTSIDE = tl.constexpr(-(2**31) + 256)


@triton.jit
def scores_and_keys(logits, bias, inside):
    """f32 scores = sigmoid(logits) and i32 keys that order score + bias, both of the shape of ``logits``.

    ``bias`` and ``inside`` (false: no such expert) broadcast to it. The order is that of torch.sort: NaN first. As
    integers, the largest is found by one instruction a warp on sm_80 and later, and no comparison meets a NaN.
    """
    scores = 1.0 / (1.0 + tl.exp(-logits))
    biased = scores + bias
    bits = biased.to(tl.int32, bitcast=True)
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = tl.where(biased != biased, 0x7FFFFFFF, keys)
    return scores, tl.where(inside, keys, OUTSIDE)


@triton.jit
def choose(keys, expert, K, EP: tl.constexpr, AXIS: tl.constexpr):
    """i32 place of the chosen (0 … K - 1, best first; of equals the lowest expert) and whether chosen, experts along
    ``AXIS``, numbered by ``expert``. The place of others means nothing. Needs K <= number of experts.
    """
    for slot in range(K):
        largest = tl.max(keys, axis=AXIS, keep_dims=True)
        best = tl.min(tl.where(keys == largest, expert, EP), axis=AXIS, keep_dims=True)
        keys = tl.where(expert == best, TAKEN + slot, keys)
    return keys - TAKEN, keys < TAKEN + K


@triton.jit
def shares(scores, chosen, AXIS: tl.constexpr):
    """f32 routing weights: scores / Σ chosen scores."""
    return scores / tl.sum(tl.where(chosen, scores, 0.0), axis=AXIS, keep_dims=True)
