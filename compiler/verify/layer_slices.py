"""Where a rank's program passes from layer to layer: at the norm that reads a layer's hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mm2c_runtime.errors import BundleError

# op -> its weight's place, and the places whose sum is normalised
_NORMS: dict[str, tuple[int, tuple[int, ...]]] = {
    "RMSNormalization": (1, (0,)),
    "SimplifiedLayerNormalization": (1, (0,)),
    "SkipSimplifiedLayerNormalization": (2, (0, 1)),
    "M2AddRmsNorm": (2, (0, 1)),
}


class AnyNode(Protocol):
    """A node of a cuda program, or one of an ONNX graph seen through ``OnnxNode``."""

    @property
    def op(self) -> str: ...
    @property
    def inputs(self) -> Sequence[str]: ...
    @property
    def outputs(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Boundary:
    """``at``: the norm's place in the list of nodes; ``hidden``: values whose sum is the hidden state there."""

    at: int
    hidden: tuple[str, ...]


@dataclass(frozen=True)
class Slices:
    """``inputs[l]``: where layer l begins; ``middles[l]``: its norm behind attention; ``end``: the final norm.

    ``inputs[l].hidden`` with ``l`` the number of layers is ``end``'s.
    """

    inputs: tuple[Boundary, ...]
    middles: tuple[Boundary, ...]
    end: Boundary

    def entry(self, layer: int) -> Boundary:
        """The boundary before ``layer``; the final norm's for the number of layers."""
        return self.end if layer == len(self.inputs) else self.inputs[layer]

    def span(self, layer: int) -> tuple[int, int]:
        """The nodes of ``layer``: first and one behind the last."""
        return self.inputs[layer].at, self.entry(layer + 1).at


def find_slices(nodes: Sequence[AnyNode], layers: int, where: str) -> Slices:
    """Raises BundleError where a norm is not there."""
    came_from: dict[str, str] = {}
    found: dict[str, Boundary] = {}
    for at, node in enumerate(nodes):
        if node.op in ("Cast", "Identity"):
            came_from[node.outputs[0]] = came_from.get(node.inputs[0], node.inputs[0])
        elif node.op in _NORMS:
            place, hidden = _NORMS[node.op]
            weight = came_from.get(node.inputs[place], node.inputs[place])
            found[weight] = Boundary(at, tuple(node.inputs[i] for i in hidden))

    def boundary(weight: str) -> Boundary:
        if weight not in found:
            raise BundleError(
                f"the program has no norm that reads {weight}, so its layers cannot be told apart",
                where=where,
            )
        return found[weight]

    names = [f"model.layers.{layer}" for layer in range(layers)]
    slices = Slices(
        tuple(boundary(f"{name}.input_layernorm.weight") for name in names),
        tuple(boundary(f"{name}.post_attention_layernorm.weight") for name in names),
        boundary("model.norm.weight"),
    )
    places = [b.at for pair in zip(slices.inputs, slices.middles, strict=True) for b in pair] + [
        slices.end.at
    ]
    if places != sorted(places):
        raise BundleError("the layers of the program are not in order", where=where)
    return slices


def last_readers(nodes: Sequence[AnyNode]) -> dict[str, int]:
    """By value, the place of the last node that reads it."""
    last: dict[str, int] = {}
    for at, node in enumerate(nodes):
        last.update(dict.fromkeys(node.inputs, at))
    return last


def add_parts(parts: Sequence[Any]) -> Any:
    """The hidden state of a boundary: the sum of its values, in f32."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
