"""A layer of a network as its evaluator reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from torch import Tensor

from mm2c.verify.network.calls import Collectives
from mm2c.verify.network.dtypes import Precision
from mm2c.verify.network.errors import UnknownLayer

# What a layer computes: its inputs, None where one is left out, to its outputs.
Evaluate: TypeAlias = Callable[[Precision, Sequence["Tensor | None"]], "tuple[Tensor, ...]"]

_METADATA = re.compile(r"^\[ONNX Layer: (.*)\]$", re.DOTALL)


@dataclass(frozen=True)
class TensorFacts:
    """What a network declares of a tensor; -1 is a size that is known when the network runs. ``dtype``: the name of
    TensorRT's type."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerView:
    """``layer``: of its own class, so that its attributes can be read; ``kind``: the name of its LayerType;
    ``origin``: the ONNX node that it was made of and the functions around it, "" where that is not known."""

    trt: Any
    layer: Any
    name: str
    kind: str
    origin: str
    inputs: tuple[TensorFacts | None, ...]
    outputs: tuple[TensorFacts, ...]
    collectives: Collectives

    def refuse(self, why: str) -> NoReturn:
        raise UnknownLayer(self.name, self.kind, self.origin, why)

    def given(self, index: int) -> bool:
        """Whether there is an input ``index``: it overrides the attribute of the same meaning."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def input(self, index: int) -> TensorFacts:
        """Of an input that the layer must have."""
        facts = self.inputs[index] if index < len(self.inputs) else None
        if facts is None:
            self.refuse(f"it has no input {index}")
        return facts

    def only(self, *indices: int) -> None:
        """Refuses inputs other than ``indices``."""
        for index in range(len(self.inputs)):
            if self.given(index) and index not in indices:
                self.refuse(f"an input {index}")

    def one_of(self, what: str, value: Any, *names: str) -> str:
        """The name of an enumeration's value; refused where it is none of ``names``."""
        name = str(value.name)
        if name not in names:
            self.refuse(f"{what} {name}")
        return name


def onnx_origin(metadata: str) -> str:
    """ "node | caller (Function)" of what TensorRT's ONNX parser notes on a layer."""
    found = _METADATA.match(metadata)
    return found[1] if found else ""
