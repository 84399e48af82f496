"""The layers of an INetworkDefinition in an order in which they can be evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm2c.verify.network.calls import Collectives
from mm2c.verify.network.errors import ReplayError
from mm2c.verify.network.layers import LAYERS
from mm2c.verify.network.layers.collective import KIND as COLLECTIVE
from mm2c.verify.network.layers.registry import unknown_attributes
from mm2c.verify.network.view import Evaluate, LayerView, TensorFacts, onnx_origin


@dataclass(frozen=True)
class Step:
    """One layer: values are numbered, ``inputs`` holds None for one that is left out. ``last_uses``: values that
    nothing reads after this step."""

    view: LayerView
    evaluate: Evaluate
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    last_uses: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """``inputs`` and ``outputs``: a value's number and what the network declares of it, in the network's order."""

    inputs: Mapping[str, tuple[int, TensorFacts]]
    outputs: Mapping[str, tuple[int, TensorFacts]]
    steps: tuple[Step, ...]


def read_program(trt: Any, network: Any, collectives: Collectives) -> Program:
    """Raises UnknownLayer for the first layer that cannot be evaluated exactly. What is returned does not refer to the
    network."""
    tensors = _Tensors()
    inputs = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        inputs[str(tensor.name)] = (tensors.number(tensor), facts_of(tensor))
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    found = [_Read(trt, layer, tensors, collectives) for layer in layers]
    outputs = {}
    for index in range(network.num_outputs):
        tensor = network.get_output(index)
        outputs[str(tensor.name)] = (tensors.number(tensor), facts_of(tensor))
    ordered = _in_order(found, {number for number, _ in inputs.values()})
    check_caches(ordered, {number for number, _ in inputs.values()})
    return Program(inputs, outputs, _with_last_uses(ordered, {number for number, _ in outputs.values()}))


def fix_shapes(network: Any, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give the network's inputs the sizes of one step. TensorRT's own inference then knows every size in the network,
    as far as it does not hang on values, and a replay that is made of it compares every one with what it computes."""
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape):
            tensor.shape = tuple(shapes[str(tensor.name)])


def facts_of(tensor: Any) -> TensorFacts:
    """Raises ReplayError where TensorRT finds no sizes: a layer before it is not valid."""
    try:
        return TensorFacts(str(tensor.name), str(tensor.dtype.name), tuple(tensor.shape))
    except RuntimeError as error:
        raise ReplayError(f"tensor {tensor.name}: {error}") from None


class _Tensors:
    """A number for every tensor. The binding gives one Python object for one tensor as long as that object lives;
    names say nothing, a network may hold several of one name."""

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._numbers: dict[int, int] = {}

    def number(self, tensor: Any) -> int:
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = len(self._kept)
            self._kept.append(tensor)
        return self._numbers[id(tensor)]


class _Read:
    def __init__(self, trt: Any, layer: Any, tensors: _Tensors, collectives: Collectives) -> None:
        kind = str(trt.ILayer.type.fget(layer).name)  # some interfaces have a ``type`` of their own
        given = [layer.get_input(index) for index in range(layer.num_inputs)]
        made = [layer.get_output(index) for index in range(layer.num_outputs)]
        self.inputs = tuple(None if tensor is None else tensors.number(tensor) for tensor in given)
        self.outputs = tuple(tensors.number(tensor) for tensor in made)
        entry = LAYERS.get(kind)
        if entry is not None:
            layer.__class__ = getattr(trt, entry.interface)
        self.view = LayerView(
            trt=trt,
            layer=layer,
            name=str(layer.name),
            kind=kind,
            origin=onnx_origin(str(layer.metadata)),
            inputs=tuple(None if tensor is None else facts_of(tensor) for tensor in given),
            outputs=tuple(facts_of(tensor) for tensor in made),
            collectives=collectives,
        )
        if entry is None:
            self.view.refuse("no evaluator of this kind")
        strange = unknown_attributes(trt, entry)
        if strange:
            self.view.refuse(f"{entry.interface} has {strange} in this version of TensorRT")
        if layer.num_ranks != 1 and kind != COLLECTIVE:
            self.view.refuse(f"spread over {layer.num_ranks} ranks")
        self.evaluate = entry.read(self.view)


def _in_order(layers: list[_Read], ready: set[int]) -> list[_Read]:
    """Every layer behind those whose outputs it reads: a network's own order does not promise that."""
    waiting: dict[int, list[_Read]] = {}
    missing = {id(layer): {n for n in layer.inputs if n is not None and n not in ready} for layer in layers}
    for layer in layers:
        for number in missing[id(layer)]:
            waiting.setdefault(number, []).append(layer)
    ordered = [layer for layer in layers if not missing[id(layer)]]
    for layer in ordered:
        for number in layer.outputs:
            for reader in waiting.get(number, ()):
                missing[id(reader)].discard(number)
                if not missing[id(reader)]:
                    ordered.append(reader)
    if len(ordered) < len(layers):
        stuck = next(layer for layer in layers if missing[id(layer)])
        raise ReplayError(f"layer {stuck.view.name} reads what no layer and no input of the network makes")
    return ordered


def check_caches(layers: list[_Read], inputs: set[int]) -> None:
    """A cache is updated in place: its layer reads an input of the network, and nothing else reads that input but for
    its shape, or the result would hang on the order in which TensorRT runs the layers."""
    updates = {layer.inputs[0]: layer for layer in layers if layer.view.kind == "KV_CACHE_UPDATE"}
    for number, update in updates.items():
        if number not in inputs:
            update.view.refuse("its cache is no input of the network")
    for layer in layers:
        for number in layer.inputs:
            if number in updates and layer is not updates[number] and layer.view.kind != "SHAPE":
                layer.view.refuse(f"it reads a cache that layer {updates[number].view.name} updates in place")


def _with_last_uses(layers: list[_Read], kept: set[int]) -> tuple[Step, ...]:
    seen = set(kept)
    steps = []
    for layer in reversed(layers):
        own = {number for number in (*layer.inputs, *layer.outputs) if number is not None}
        steps.append(Step(layer.view, layer.evaluate, layer.inputs, layer.outputs, tuple(own - seen)))
        seen |= own
    return tuple(reversed(steps))
