"""Lowerings that generate: what only the last token needs is computed for the last token only."""

from __future__ import annotations

import onnx_ir as ir

from mm2c.lower.program import LoweredRank
from mm2c.lower.writer import drop_unused
from mm2c.passes.edit import present

# Ops that treat every token by itself, and which of their inputs run over tokens.
_TOKENWISE: dict[str, slice] = {
    "Add": slice(0, 2),
    "RMSNormalization": slice(0, 1),
    "MatMul": slice(0, 1),
    "Reshape": slice(0, 1),
    "M2Fp8Linear": slice(0, 1),
    "M2DenseLinear": slice(0, 1),
    "M2RouterLinear": slice(0, 1),
    "M2MoeRouting": slice(0, 1),
    "M2MoeExpertsFp8": slice(0, 3),
    "M2MoeExpertsBf16": slice(0, 3),
    "DistCollective": slice(0, 1),
}


def hoist_last_token(rank: LoweredRank) -> None:
    """Move the choice of each row's last token in front of the last layer's experts and output projection.

    Attention of the last layer still runs over all tokens, because it fills the cache; nothing behind it
    does.

    Rewrite rules, for the GatherND (batch_dims 1) that picks the last token from x[B, S, H]:
      1. a token-wise node that is read by the pick alone, or by such nodes alone, joins the region
      2. values[B, S, ·] that enter the region are picked at its border
      3. a Reshape between [B, S, ·] and [B·S, ·] inside the region falls away: both are [B, ·] now
      4. the old pick falls away

    Graphs that return all logits have no pick and stay as they are. So do graphs of attention-DP: what enters the
    region from the experts there are the group's tokens cut out of everyone's, and not [B, S, ·].
    """
    picks = [n for n in rank.model.graph if n.op_type == "GatherND" and _reaches_head(n)]
    if len(picks) != 1:
        return
    pick = picks[0]
    region = _region(rank.model.graph, pick)
    border = {id(v): v for node in region for v in _over_tokens(node) if v.producer() not in region}
    ranks = _ranks(region, pick)
    if any(ranks[key] != 3 for key in border):
        return
    for number, value in enumerate(border.values()):
        _pick_at_border(rank.model.graph, pick, value, region, f"last_token.{number}")
    for node in region:
        for value in node.outputs:
            value.shape = None
        if node.op_type == "Reshape" and node.inputs[0] is not None:
            node.outputs[0].replace_all_uses_with(node.inputs[0])
    pick.outputs[0].replace_all_uses_with(present(pick.inputs[0]))
    drop_unused(rank.model, rank.recipes)
    rank.model.graph.sort()  # the index of the last token may be made later than it is now read


def _reaches_head(node: ir.Node) -> bool:
    """Whether the pick feeds the final norm, and is not some other use of GatherND."""
    source = node.inputs[0]
    users = node.outputs[0].consumers()
    batched = "batch_dims" in node.attributes and node.attributes["batch_dims"].as_int() == 1
    return (
        batched
        and source is not None
        and source.producer() is not None
        and len(users) == 1
        and (users[0].op_type == "RMSNormalization")
    )


def _region(graph: ir.Graph, pick: ir.Node) -> list[ir.Node]:
    """Token-wise nodes that only the pick needs, in graph order."""
    members = {pick}
    found: list[ir.Node] = []
    returned = {id(value) for value in graph.outputs}
    for node in reversed(list(graph)):
        users = [user for value in node.outputs for user in value.consumers()]
        private = bool(users) and all(user in members for user in users)
        if (
            private
            and node.op_type in _TOKENWISE
            and not any(id(value) in returned for value in node.outputs)
        ):
            members.add(node)
            found.append(node)
    return found[::-1]


def _ranks(region: list[ir.Node], pick: ir.Node) -> dict[int, int]:
    """Rank of every value in and around the region, from the pick back: shapes are not known after sharding.

    A Reshape between token-wise nodes goes from [B, S, ·] to [B·S, ·] or back; the others keep the rank.
    """
    ranks = {id(pick.inputs[0]): 3}
    for node in reversed(region):
        rank = ranks[id(node.outputs[0])]
        for value in _over_tokens(node):
            ranks[id(value)] = 5 - rank if node.op_type == "Reshape" else rank
        for value in node.outputs:
            ranks[id(value)] = rank
    return ranks


def _over_tokens(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs[_TOKENWISE[node.op_type]] if value is not None]


def _pick_at_border(
    graph: ir.Graph, pick: ir.Node, value: ir.Value, region: list[ir.Node], name: str
) -> None:
    users = [node for node in region if any(v is value for v in _over_tokens(node))]
    node = ir.node("GatherND", [value, pick.inputs[1]], {"batch_dims": 1}, name=name)
    node.outputs[0].name, node.outputs[0].type = name, value.type
    graph.insert_before(users[0], node)
    for user in users:
        for index, read in enumerate(user.inputs):
            if read is value:
                user.replace_input_with(index, node.outputs[0])
