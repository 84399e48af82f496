"""``rank*/model.onnx`` as it is read back: its nodes with those of the outlined decoder layers in their places."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm2c_runtime.errors import BundleError

if TYPE_CHECKING:
    from onnx import FunctionProto, ModelProto, NodeProto, TensorProto

DOMAIN = "mm2c"
REBUILD = "build the bundle again with `mm2c build … --force`"
_CALL = re.compile(r"DecoderLayer(_\d+)?")
_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)(?:[./]|$)")


@dataclass(frozen=True)
class GraphNode:
    """A node of the whole graph. ``name``: in full; ``layer``: its decoder layer, None outside of them."""

    name: str
    layer: int | None
    proto: NodeProto


@dataclass(frozen=True)
class RankGraphFile:
    """One rank's graph in the dialect, without its tensors' data."""

    rank: int
    path: Path
    model: ModelProto

    @property
    def name(self) -> str:
        """Path in the bundle."""
        return f"rank{self.rank}/{self.path.name}"

    @property
    def layer_functions(self) -> dict[str, FunctionProto]:
        """The functions of decoder layers by name."""
        return {f.name: f for f in self.model.functions if f.domain == DOMAIN and _CALL.fullmatch(f.name)}

    @property
    def calls(self) -> list[NodeProto]:
        """The calls of decoder layers in their order."""
        functions = self.layer_functions
        return [n for n in self.model.graph.node if n.domain == DOMAIN and n.op_type in functions]

    @property
    def tensors(self) -> list[TensorProto]:
        """Those that lie in the weights file."""
        return [tensor for tensor in self.model.graph.initializer if tensor.external_data]

    def nodes(self) -> Iterator[GraphNode]:
        """Every node, calls replaced by what they call."""
        functions = self.layer_functions
        for node in self.model.graph.node:
            function = functions.get(node.op_type) if node.domain == DOMAIN else None
            if function is None:
                yield GraphNode(node.name, layer_of(node.name), node)
                continue
            for inner in own_nodes(function):
                joint = "" if inner.name.startswith("/") else "."
                yield GraphNode(f"{node.name}{joint}{inner.name}", layer_of(node.name), inner)


def own_nodes(function: FunctionProto) -> list[NodeProto]:
    """A layer's nodes, without those that only let an input into the function."""
    inputs = set(function.input)
    return [n for n in function.node if not (n.op_type == "Identity" and n.input[0] in inputs)]


def layer_of(name: str) -> int | None:
    """The decoder layer that a name speaks of."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """A node's attributes as plain values, strings decoded."""
    from onnx.helper import get_attribute_value

    values = {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
    return {name: v.decode() if isinstance(v, bytes) else v for name, v in values.items()}


def stored_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor in its weights file."""
    return sum(int(field.value) for field in tensor.external_data if field.key == "length")


def load_graph(bundle: Path, rank: int) -> RankGraphFile:
    """Raises BundleError where the file cannot be read or is no ONNX graph."""
    path = bundle / f"rank{rank}" / "model.onnx"
    return RankGraphFile(rank, path, load_model(path))


def load_model(path: Path) -> ModelProto:
    """An ONNX file without its external tensors."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise BundleError(
            f"{path.name} cannot be read: {error.strerror}", where=str(path), remedy=REBUILD
        ) from None
    except DecodeError:
        raise BundleError(f"{path.name} is no ONNX graph", where=str(path), remedy=REBUILD) from None
