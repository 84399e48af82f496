"""A plan's wide graph on ONNX Runtime, in parts between its collectives: weights are inputs, so that one session serves
every stage and rank that has the plan."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx.inliner import inline_selected_functions

from mm2c.dialect.schema import DOMAIN
from mm2c_runtime.errors import BundleError

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")
COLLECTIVE = "DistCollective"
_PROVIDERS = ["CPUExecutionProvider"]


@dataclass(frozen=True)
class Joint:
    """A collective that a rank has come to: what it gives, and which ranks take part."""

    name: str
    kind: str  # "all_reduce" or "all_gather"
    groups: tuple[tuple[int, ...], ...]
    axis: int
    value: Array


@dataclass
class _Part:
    """Nodes between two collectives. ``session`` is made when the first values come: they tell their types."""

    nodes: list[onnx.NodeProto]
    inputs: list[str]
    outputs: list[str]
    joint: onnx.NodeProto | None
    session: ort.InferenceSession | None = None
    dying: list[str] = field(default_factory=list)  # values that no later part reads


class WideGraph:
    """``path``: an ONNX file without bf16. ``watched``: values that are among the results too.

    Raises BundleError where the file is no ONNX model, or ONNX Runtime cannot run a part of it.
    """

    def __init__(self, path: Path, watched: Sequence[str] = (), *, threads: int = 1) -> None:
        self.path, self._threads = path, threads
        # ONNX Runtime takes no e4m3 through two functions, so that it gets none; collectives are where it is cut
        self.model = inline_selected_functions(read_graph(path), [(DOMAIN, COLLECTIVE)], exclude=True)
        graph = self.model.graph
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._wanted = list(dict.fromkeys([*self.outputs, *watched]))
        self._parts = self._cut(graph.node)

    def steps(self, feeds: Mapping[str, ort.OrtValue]) -> Generator[Joint, Array, dict[str, Array]]:
        """Run one rank: yields at each collective and is sent its result; returns outputs and watched values."""
        values: dict[str, ort.OrtValue] = dict(feeds)
        found: dict[str, Array] = {}
        for number, part in enumerate(self._parts):
            if part.outputs:
                self._run(number, part, values)
            if part.joint is not None:
                source, target = part.joint.input[0], part.joint.output[0]
                result = yield _joint(part.joint, array_of(values[source]))
                values[target] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(result))
            for name in part.dying:
                if name in self._wanted:
                    found[name] = array_of(values[name])
                if name not in feeds:
                    values.pop(name, None)
        return {name: found[name] for name in self._wanted}

    def _run(self, number: int, part: _Part, values: dict[str, ort.OrtValue]) -> None:
        if part.session is None:
            part.session = self._session(number, part, values)
        try:
            made = part.session.run_with_ort_values(
                part.outputs, {name: values[name] for name in part.inputs}
            )
        except Exception as error:
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot run part {number} of a plan's graph: {error}",
                where=str(self.path),
            ) from error
        values.update(zip(part.outputs, made, strict=True))

    def _session(self, number: int, part: _Part, values: Mapping[str, ort.OrtValue]) -> ort.InferenceSession:
        graph = onnx.GraphProto(name=f"{self.path.stem}.{number}")
        graph.node.extend(part.nodes)
        read = {name for node in part.nodes for name in node.input}
        graph.initializer.extend(tensor for name, tensor in self._constants.items() if name in read)
        for name in part.inputs:
            rank = len(values[name].shape())
            graph.input.append(
                onnx.helper.make_tensor_value_info(name, values[name].element_type(), [None] * rank)
            )
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in part.outputs)
        model = onnx.ModelProto(ir_version=self.model.ir_version, graph=graph)
        model.opset_import.extend(self.model.opset_import)
        model.functions.extend(self.model.functions)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # dequantised experts would stay in it
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return ort.InferenceSession(model.SerializeToString(), options, providers=_PROVIDERS)
        except Exception as error:
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load part {number} of a plan's graph: {error}",
                where=str(self.path),
            ) from error

    def _cut(self, nodes: Sequence[onnx.NodeProto]) -> list[_Part]:
        groups: list[tuple[list[onnx.NodeProto], onnx.NodeProto | None]] = [([], None)]
        for node in nodes:
            if node.op_type == COLLECTIVE:
                groups[-1] = (groups[-1][0], node)
                groups.append(([], None))
            else:
                groups[-1][0].append(node)
        reads: list[set[str]] = []
        for own, joint in groups:
            read = {name for node in own for name in node.input if name and name not in self._constants}
            read.difference_update(*(node.output for node in own))
            reads.append(read | ({joint.input[0]} if joint is not None else set()))
        parts = []
        for index, (own, joint) in enumerate(groups):
            later = set(self._wanted).union(
                *reads[index + 1 :], {joint.input[0]} if joint is not None else ()
            )
            made = [name for node in own for name in node.output if name]
            inputs = sorted(
                {n for node in own for n in node.input if n and n not in self._constants}.difference(made)
            )
            parts.append(_Part(own, inputs, [name for name in made if name in later], joint))
        self._end_values(parts, reads)
        return parts

    def _end_values(self, parts: list[_Part], reads: list[set[str]]) -> None:
        """Where each value that a part leaves is read for the last time; what is wanted stays to the end."""
        for index, part in enumerate(parts):
            made = [*part.outputs, *([part.joint.output[0]] if part.joint is not None else [])]
            for name in made:
                last = max((at for at, read in enumerate(reads) if name in read), default=index)
                parts[max(last, index)].dying.append(name)
        known = {name for part in parts for name in part.dying}
        parts[-1].dying += [name for name in self._wanted if name not in known]


def run_lockstep(
    ranks: Sequence[Generator[Any, Any, Result]], exchange: Callable[[Sequence[Any]], Sequence[Any]]
) -> list[Result]:
    """What every rank returns: they go on together from collective to collective, where ``exchange`` is given what all
    of them yield and says what each is sent.

    Raises BundleError where some end while others wait.
    """
    results: list[Result] = []
    sent: list[Any] = [None] * len(ranks)
    while True:
        calls = []
        for steps, value in zip(ranks, sent, strict=True):
            try:
                calls.append(next(steps) if value is None else steps.send(value))
            except StopIteration as stop:
                results.append(stop.value)
        if not calls:
            return results
        if results:
            raise BundleError("some ranks have ended while others wait", where=calls[0].name)
        sent = list(exchange(calls))


def join(joints: Sequence[Joint]) -> list[Array]:
    """What the collective leaves on each rank: sums in the order of the ranks, in the values' own type."""
    first = joints[0]
    if any((j.kind, j.groups, j.axis) != (first.kind, first.groups, first.axis) for j in joints):
        raise BundleError("the ranks are at different collectives", where=first.name)
    results: list[Array] = [joint.value for joint in joints]
    for group in first.groups:
        values = [joints[rank].value for rank in group]
        if first.kind == "all_gather":
            made = np.concatenate(values, first.axis)
        else:
            made = values[0].copy()
            for value in values[1:]:
                made += value
        for rank in group:
            results[rank] = made
    return results


def array_of(value: ort.OrtValue) -> Array:
    """A copy: what ``numpy`` gives does not keep the value alive, and has bytes for e4m3."""
    found: Array = value.numpy().copy()
    return (
        found.view(ml_dtypes.float8_e4m3fn)
        if value.element_type() == onnx.TensorProto.FLOAT8E4M3FN
        else found
    )


def read_graph(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds
        raise BundleError(f"a plan's graph cannot be read: {error}", where=str(path)) from None


def _joint(node: onnx.NodeProto, value: Array) -> Joint:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    kind = attributes["collective_operation"].decode()
    if kind not in ("all_reduce", "all_gather") or (
        kind == "all_reduce" and attributes["reduce_op"] != b"sum"
    ):
        raise BundleError(f"a collective of a plan's graph is of the kind {kind}", where=node.name)
    flat, size = list(attributes["groups"]), attributes["group_size"]
    groups = tuple(tuple(flat[at : at + size]) for at in range(0, len(flat), size))
    return Joint(node.name or node.output[0], kind, groups, attributes["axis"], value)
