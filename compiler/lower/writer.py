"""Writing nodes into a graph that is being lowered: at a place, with names that tell where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mm2c_runtime.weights.recipe import Cast, Recipe, Transpose, dequantize

CONTRIB = "com.microsoft"
_TYPES = {
    "f32": ir.DataType.FLOAT,
    "bf16": ir.DataType.BFLOAT16,
    "f16": ir.DataType.FLOAT16,
    "e4m3": ir.DataType.FLOAT8E4M3FN,
}
DTYPES = {kind: name for name, kind in _TYPES.items()}  # the recipes' names


def as_f32(recipe: Recipe) -> Recipe:
    """The tensor in f32; e4m3 needs its scale, see ``dequantized``."""
    if recipe.dtype == "e4m3":
        raise ValueError("an e4m3 tensor is not cast but dequantised with its scale")
    return recipe if recipe.dtype == "f32" else Cast(recipe, "f32")


def dequantized(weight: Recipe, scale: Recipe, node: ir.Node, *, turned: bool = False) -> Recipe:
    """The f32 tensor of an FP8 weight; the block is the node's, with its sides exchanged where ``turned``."""
    sides = node.attributes["block_n"].as_int(), node.attributes["block_k"].as_int()
    return dequantize(weight, scale, *(sides[::-1] if turned else sides))


def transposed(recipe: Recipe) -> Recipe:
    """A matrix with its axes exchanged."""
    if isinstance(recipe, Transpose) and recipe.perm == (1, 0):
        return recipe.of
    return Transpose(recipe, (1, 0))


class Writer:
    """Adds nodes before one node of ``model``; every name begins with ``scope``: runs agree on all names."""

    def __init__(self, model: ir.Model, recipes: dict[str, Recipe], before: ir.Node, scope: str) -> None:
        self._graph = model.graph
        self._recipes = recipes
        self._before = before
        self._scope = scope

    def emit(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        outputs: int = 1,
        kind: ir.DataType = ir.DataType.FLOAT,
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """Append a node; outputs are of dtype ``kind`` and named ``scope.name``, then ``scope.name.1`` …"""
        node = ir.node(
            op, inputs, attributes, domain=domain, num_outputs=outputs, name=f"{self._scope}.{name}"
        )
        for i, value in enumerate(node.outputs):
            value.name = f"{self._scope}.{name}" + (f".{i}" if i else "")
            value.type = ir.TensorType(kind)
        self._graph.insert_before(self._before, node)
        return tuple(node.outputs)

    def one(self, op: str, inputs: Sequence[ir.Value | None], name: str, **attributes: Any) -> ir.Value:
        """``emit`` of a node with one output."""
        return self.emit(op, inputs, name, **attributes)[0]

    def contrib(self, op: str, inputs: Sequence[ir.Value | None], name: str, **attributes: Any) -> ir.Value:
        """``one`` of ONNX Runtime's own domain."""
        return self.emit(op, inputs, name, domain=CONTRIB, **attributes)[0]

    def constant(self, name: str, data: float | list[int] | NDArray[Any]) -> ir.Value:
        """A small constant held in the graph, shared by its name: f32 for a float, i64 for a list of ints."""
        known = self._graph.initializers.get(name)
        if known is not None:
            return known
        array = np.asarray(data, np.float32 if isinstance(data, float) else None)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value

    def weight(self, name: str, recipe: Recipe) -> ir.Value:
        """A tensor of the lowering's weights file."""
        return add_weight(self._graph, self._recipes, name, recipe)

    def replace(self, node: ir.Node, values: list[ir.Value]) -> None:
        """Let ``values`` stand for the node's outputs, under the outputs' names where the graph returns them,
        and remove the node."""
        outputs = self._graph.outputs
        for old, new in zip(node.outputs, values, strict=True):
            new.shape = new.shape or old.shape
            new.type = old.type or new.type
            for i, output in enumerate(outputs):
                if output is old:
                    outputs[i] = new
                    new.name, old.name = old.name, f"{new.name}.old"
            old.replace_all_uses_with(new)
        self._graph.remove(node, safe=True)


def add_weight(graph: ir.Graph, recipes: dict[str, Recipe], name: str, recipe: Recipe) -> ir.Value:
    """Add (or replace under the same name) an initializer without data."""
    value = ir.Value(name=name, shape=ir.Shape(recipe.shape), type=ir.TensorType(_TYPES[recipe.dtype]))
    graph.initializers[name] = value
    recipes[name] = recipe
    return value


def drop_unused(model: ir.Model, recipes: dict[str, Recipe]) -> None:
    """Remove nodes and tensors that nothing reads any more."""
    outputs = {id(value) for value in model.graph.outputs}
    for node in reversed(list(model.graph)):
        if not any(value.uses() or id(value) in outputs for value in node.outputs):
            model.graph.remove(node, safe=True)
    for name in [n for n, v in model.graph.initializers.items() if not v.uses() and id(v) not in outputs]:
        del model.graph.initializers[name]
        recipes.pop(name, None)
