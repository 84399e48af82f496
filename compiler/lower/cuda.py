"""The lowering of the cuda engine: a paged graph of plugin ops, one list of nodes with its collectives inside."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.dialect import ops
from mm2c.lower.constants import name_constants
from mm2c.lower.dense_linear import lower_dense_linears
from mm2c.lower.fold_casts import fold_casts
from mm2c.lower.fuse_add_norm import fuse_add_norm
from mm2c.lower.fuse_moe import fuse_moe
from mm2c.lower.fuse_qkv_linear import fuse_qkv_linear
from mm2c.lower.hoist_last_token import hoist_last_token
from mm2c.lower.pages import lower_to_pages
from mm2c.lower.program import LoweredRank
from mm2c.lower.router_linear import lower_router
from mm2c.passes.edit import PassError, clear_intermediate_shapes
from mm2c.weights.rank_graph import RankGraph

# What the executor knows: plugins and collectives, and of standard ONNX what embedding and bookkeeping need.
PLUGIN_OPS = frozenset(
    (
        "M2Fp8Linear",
        "M2DenseLinear",
        "M2QkSumSquares",
        "M2PagedAttention",
        "M2RouterLinear",
        "M2MoeFp8",
        "M2MoeBf16",
        "M2AddRmsNorm",
        "DistCollective",
    )
)
STANDARD_OPS = frozenset(
    (
        "Add",
        "Sub",
        "Mul",
        "And",
        "Less",
        "GreaterOrEqual",
        "Where",
        "Cast",
        "CastLike",
        "Concat",
        "Gather",
        "GatherND",
        "MatMul",
        "Pad",
        "Reshape",
        "Shape",
        "Slice",
        "Split",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "RMSNormalization",
        "Identity",
    )
)
BLOCKS = (64, 128)  # sides of a scale block that the kernels read


def lower_cuda(graph: RankGraph, kv: ir.DataType | None = None) -> LoweredRank:
    """A new graph over a paged cache of dtype ``kv`` (default: the activations'); ``graph`` is left as it is.

    Any batch of ragged rows runs, padding included; cache outputs are the cache inputs, written in place.
    Activations are what the graph was traced with; logits are f32.

    Raises:
        PassError: something is left that the executor does not know.
    """
    rank = LoweredRank(graph.model.clone(), dict(graph.recipes), in_place=True, padded=True)
    activation = activation_of(graph)
    lower_router(rank)  # before casts are folded: it reads its weight as it is stored
    fold_casts(rank, activation)
    lower_dense_linears(rank)
    hoist_last_token(rank)
    fuse_qkv_linear(rank)
    lower_to_pages(rank, activation if kv is None else kv)
    fuse_moe(rank)
    fuse_add_norm(rank)
    name_constants(rank)
    clear_intermediate_shapes(rank.model)
    rank.model.opset_imports["mm2c"] = 1
    _check(rank)
    return rank


def activation_of(graph: RankGraph) -> ir.DataType:
    """The dtype that the graph was traced with: its caches have it."""
    cache = next((value for value in graph.model.graph.inputs if value.name == "k_cache.0"), None)
    if cache is None or cache.dtype is None:
        raise PassError("the graph has no cache, or one without a type")
    return cache.dtype


def _check(rank: LoweredRank) -> None:
    for node in rank.model.graph:
        known = PLUGIN_OPS if node.domain == "mm2c" else STANDARD_OPS if not node.domain else frozenset()
        if node.op_type not in known:
            raise PassError(f"{node.name}: the cuda engine has no {node.domain or 'ONNX'} op {node.op_type}")
        if node.domain == "mm2c" and set(ops[node.op_type].schema.attributes) != set(node.attributes):
            raise PassError(f"{node.name}: attributes {sorted(node.attributes)}")
        for name in ("block_n", "block_k"):
            if name in node.attributes and node.attributes[name].as_int() not in BLOCKS:
                raise PassError(
                    f"{node.name}: {name} is {node.attributes[name].as_int()}, not one of {BLOCKS}"
                )
