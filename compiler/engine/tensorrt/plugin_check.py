"""Do a library's plugins take the nodes of a graph? Every plugin is created as TensorRT would, before it is asked to.

TensorRT's registry (``registry``) and the plugin host, which needs no TensorRT, answer alike; the second one serves
builds that leave the plans to another machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from mm2c.engine.plugin_library import REMEDY
from mm2c.engine.tensorrt.plugin_nodes import Given, NodeTensor, PluginNode
from mm2c.errors import UserError
from mm2c_plugins.host import Extent, Field, Library, Plugin, PluginError, TensorSpec

Phase = Literal["build", "runtime"]
PHASES: tuple[Phase, ...] = ("build", "runtime")
SHOWN = 6  # problems that a message lists
SOME = 4096  # the largest value that an unknown size is taken to have; only that it is no constant counts


class Creators(Protocol):
    """The creators of one plugin library."""

    path: Path
    version: str

    def fields(self, op: str, namespace: str, version: str) -> Sequence[str] | None:
        """Names of the fields that a creator announces; None where there is no such creator."""
        ...

    def create(self, node: PluginNode, fields: Mapping[str, Given], phase: Phase) -> str:
        """Why the plugin cannot be made of the fields, or is not the one that the node asks for; empty where all is
        well."""
        ...


@dataclass(frozen=True)
class Checked:
    """``nodes`` of a graph in ``plugins`` different plugins; ``by_op``: nodes of each creator."""

    nodes: int
    plugins: int
    by_op: dict[str, int]

    def plus(self, other: Checked) -> Checked:
        """Both together; plugins that both have count twice."""
        ops = sorted({*self.by_op, *other.by_op})
        counts = {op: self.by_op.get(op, 0) + other.by_op.get(op, 0) for op in ops}
        return Checked(self.nodes + other.nodes, self.plugins + other.plugins, counts)


def check_nodes(creators: Creators, nodes: Iterable[PluginNode], where: str = "") -> Checked:
    """Create the plugin of every node, in both phases, from the fields that the parser would pass.

    ``where``: the graph, for messages.

    Raises:
        UserError: the library has no such creators, or these do not take what the nodes say; with all that is wrong.
    """
    by_kind: dict[tuple[object, ...], list[PluginNode]] = {}
    for node in nodes:
        by_kind.setdefault(node.alike, []).append(node)
    problems = []
    for alike in by_kind.values():
        text = _problem(creators, alike[0])
        if text:
            more = f" and {len(alike) - 1} node(s) like it" if len(alike) > 1 else ""
            problems.append(f"{alike[0].name} ({alike[0].op}){more}: {text}")
    if problems:
        left = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        listed = "\n".join(f"  - {line}" for line in problems[:SHOWN] + left)
        raise UserError(
            f"the plugin library {creators.version} does not take the graph:\n{listed}",
            where=f"{where} with {creators.path}" if where else str(creators.path),
            remedy=f"take graph and library from the same version of mm2c: `{REMEDY}`, then build the bundle again",
        )
    counts: dict[str, int] = {}
    for alike in by_kind.values():
        counts[alike[0].op] = counts.get(alike[0].op, 0) + len(alike)
    return Checked(sum(counts.values()), len(by_kind), dict(sorted(counts.items())))


def _problem(creators: Creators, node: PluginNode) -> str:
    announced = creators.fields(node.op, node.namespace, node.version)
    if announced is None:
        return f"no creator of version {node.version} in namespace '{node.namespace}'"
    dropped = sorted(node.needed.difference(announced))
    if dropped:
        known = ", ".join(announced) or "none"
        return (
            f"its creator does not know {', '.join(dropped)} (its fields: {known}), and the parser drops them"
        )
    fields = {name: given for name, given in node.attributes.items() if name in announced}
    for phase in PHASES:
        text = creators.create(node, fields, phase)
        if text:
            return text
    return ""


class HostCreators:
    """The creators of a library as the plugin host finds them. It knows types and shapes too, which TensorRT's Python
    interface cannot ask a C++ plugin about. Raises PluginError where the library cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = Library(path)
        self.version = self._library.version

    def fields(self, op: str, namespace: str, version: str) -> Sequence[str] | None:
        if self._library.namespaces.get(op) != (namespace, version):
            return None
        return [field.name for field in self._library.creators[op]]

    def create(self, node: PluginNode, fields: Mapping[str, Given], phase: Phase) -> str:
        given = [Field(name, kind, len(value), _bytes(kind, value)) for name, (kind, value) in fields.items()]
        try:
            plugin = self._library.create_with(node.op, given, phase=phase, layer=node.op)
            if plugin.output_count != len(node.outputs):
                return f"has {plugin.output_count} outputs, the node {len(node.outputs)}"
            return _difference(plugin, node) if phase == "build" else ""
        except PluginError as error:
            return str(error).removeprefix(f"{node.op}: ")


def _difference(plugin: Plugin, node: PluginNode) -> str:
    """What of the tensors is not as the plugin takes and gives it; PluginError says it too. Where the graph does not
    tell a type, nothing is found."""
    inputs = [_described(tensor) for tensor in node.inputs if tensor is not None]
    outputs = [_described(tensor) for tensor in node.outputs if tensor is not None]
    if len(inputs) + len(outputs) < len(node.inputs) + len(node.outputs):
        return ""
    plugin.check([*inputs, *outputs])
    for number, (made, said) in enumerate(zip(plugin.outputs(inputs), outputs, strict=True)):
        sizes = zip(made.shape, said.shape, strict=False)
        alike = all(a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int))
        if made.dtype != said.dtype or len(made.shape) != len(said.shape) or not alike:
            return f"makes output {number} as {_shown(made)}, the graph has {_shown(said)}"
    return ""


def _described(tensor: NodeTensor) -> TensorSpec:
    return TensorSpec(
        tensor.dtype, tuple(Extent(1, 1, SOME) if size is None else size for size in tensor.shape)
    )


def _shown(tensor: TensorSpec) -> str:
    return f"{tensor.dtype}[{', '.join(str(s) if isinstance(s, int) else '?' for s in tensor.shape)}]"


def _bytes(kind: str, value: tuple[int | float, ...] | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    import numpy as np

    return np.array(value, np.int32 if kind == "int32" else np.float32).tobytes()
