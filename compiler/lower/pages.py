"""cuda lowering, step 5: the KV cache in pages instead of rows."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.config import PAGE
from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import Writer
from mm2c.passes.edit import PassError, name_of, present

TABLE = "block_table"


def lower_to_pages(rank: LoweredRank, cache: ir.DataType, page: int = PAGE) -> None:
    """M2Attention over rows -> M2PagedAttention over pages of ``page`` tokens of dtype ``cache``.

    Rewrite rules:
      1. the graph gets the input block_table i32[batch, pages_of_row] behind past_len and new_len
      2. M2Attention(…, k_cache, v_cache) -> M2PagedAttention(…, block_table, k_cache, v_cache)
      3. caches, in and out: [batch, kv_heads, kv_len, head_dim] -> [pages, page, kv_heads, head_dim]
    """
    nodes = [n for n in rank.model.graph if n.op_type == "M2Attention"]
    for node in rank.model.graph:
        if node.op_type == "Shape" and name_of(node.inputs[0]).startswith(("k_cache.", "v_cache.")):
            raise PassError(
                f"{node.name} reads the sizes of {name_of(node.inputs[0])}, which pages do not have"
            )
    inputs = rank.model.graph.inputs
    if [name_of(v) for v in inputs[:3]] != ["input_ids", "past_len", "new_len"]:
        raise PassError(f"the graph's inputs begin with {[v.name for v in inputs[:3]]}")
    table = ir.Value(
        name=TABLE,
        shape=ir.Shape(["batch", "pages_of_row"]),
        type=ir.TensorType(ir.DataType.INT32),
    )
    inputs.insert(3, table)
    for node in nodes:
        *others, k_cache, v_cache = map(present, node.inputs)
        heads, width = node.attributes["kv_heads"].as_int(), node.attributes["head_dim"].as_int()
        shape = ir.Shape(["pages", page, heads, width])
        layer = name_of(k_cache).rsplit(".", 1)[1]
        writer = Writer(rank.model, rank.recipes, node, f"layers.{layer}.attention")
        results = writer.emit(
            "M2PagedAttention",
            [*others, table, k_cache, v_cache],
            "paged",
            domain="mm2c",
            outputs=3,
            kind=node.outputs[0].dtype or ir.DataType.FLOAT,
            **{name: attribute.value for name, attribute in node.attributes.items()},
        )
        for value in (k_cache, v_cache, *results[1:], *node.outputs[1:]):
            value.type, value.shape = ir.TensorType(cache), shape
        writer.replace(node, list(results))
