"""The fast lowering for ONNX Runtime: the dialect on contrib operators, weights f32 in kernel layout."""

from __future__ import annotations

from mm2c.lower.contrib_attention import lower_attention
from mm2c.lower.contrib_experts import lower_experts
from mm2c.lower.fold_weights import fold_weights
from mm2c.lower.fuse_norms import fuse_norms
from mm2c.lower.fuse_qkv import fuse_qkv
from mm2c.lower.hoist_last_token import hoist_last_token
from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import CONTRIB
from mm2c.passes.edit import clear_intermediate_shapes
from mm2c.weights.rank_graph import RankGraph


def lower_fast(graph: RankGraph) -> LoweredRank:
    """A new graph on GroupQueryAttention, MoE and fused norms; ``graph`` is left as it is.

    Runs decode steps (one new token in every row, ragged pasts) and prefill steps of one row, all tokens
    real; the cache is updated in place.

    Raises:
        ValueError: if a dialect op has no place in this lowering.
    """
    rank = LoweredRank(graph.model.clone(), dict(graph.recipes), in_place=True, padded=False)
    rank.model.opset_imports[CONTRIB] = 1
    for step in (hoist_last_token, fold_weights, fuse_qkv, lower_attention, lower_experts, fuse_norms):
        step(rank)
    clear_intermediate_shapes(rank.model)
    left = {n.op_type for n in rank.model.graph if n.domain == "mm2c"} - {"DistCollective"}
    if left:
        raise ValueError(f"the fast lowering has no rule for {', '.join(sorted(left))}")
    return rank
