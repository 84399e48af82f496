"""What the rest of the compiler knows of one dialect op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
from onnx.defs import OpSchema


@dataclass(frozen=True)
class TorchOp:
    """The torch side of an op.

    ``op`` is the custom op's overload (``torch.ops.mm2c.X.default``) and ``translate`` what the ONNX exporter
    calls in its place: it takes the op's arguments in order and emits the dialect node.
    """

    op: Any
    translate: Callable[..., Any]


@dataclass(frozen=True)
class OpSpec:
    """One op: its schema, its body in standard ONNX, its plugin and, loaded on demand, its torch op.

    ``body`` gives the executable specification: a function with the schema's inputs, outputs and attributes.
    ``plugin`` names the TensorRT plugin that replaces the body, or is None where native layers do.
    ``register_torch`` imports torch, registers the op once and returns it.
    """

    schema: OpSchema
    body: Callable[[], onnx.FunctionProto]
    plugin: str | None
    register_torch: Callable[[], TorchOp]

    @property
    def name(self) -> str:
        return str(self.schema.name)
