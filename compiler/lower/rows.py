"""The lowering for TensorRT without plugins: a graph over rows, of the ops that ``lower/native`` has bodies for."""

from __future__ import annotations

from mm2c.lower.constants import name_constants
from mm2c.lower.cuda import activation_of
from mm2c.lower.dense_linear import lower_dense_linears
from mm2c.lower.fold_casts import fold_casts
from mm2c.lower.fuse_add_norm import fuse_add_norm
from mm2c.lower.fuse_moe import fuse_moe
from mm2c.lower.fuse_qkv_linear import fuse_qkv_linear
from mm2c.lower.hoist_last_token import hoist_last_token
from mm2c.lower.program import LoweredRank
from mm2c.lower.router_linear import lower_router
from mm2c.passes.edit import clear_intermediate_shapes
from mm2c.weights.rank_graph import RankGraph


def lower_rows(graph: RankGraph) -> LoweredRank:
    """A new graph over a cache of linear rows; ``graph`` is left as it is.

    A step is one token of each row, or several of one row, all of them real. Cache outputs may be bound to the cache
    inputs.
    """
    rank = LoweredRank(graph.model.clone(), dict(graph.recipes), in_place=True, padded=False)
    activation = activation_of(graph)
    lower_router(rank)
    fold_casts(rank, activation)
    lower_dense_linears(rank)
    hoist_last_token(rank)
    fuse_qkv_linear(rank)
    fuse_moe(rank)
    fuse_add_norm(rank)
    name_constants(rank)
    clear_intermediate_shapes(rank.model)
    rank.model.opset_imports["mm2c"] = 1
    return rank
