"""A cuda program's nodes on the CPU, in fp32 or in the types that are stored; large weights a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mm2c.dialect import moe_routing
from mm2c.dialect.blocks import dequantize_reference
from mm2c.dialect.experts import experts_reference
from mm2c.verify.expert_stacks import ExpertCache
from mm2c.verify.reference_ops import ReferenceOps
from mm2c.verify.tensor_source import TensorSource, read_whole, size_of
from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda import shapes, standard
from mm2c_runtime.executors.cuda.dense import dense_linear
from mm2c_runtime.executors.cuda.dtypes import TORCH
from mm2c_runtime.weights.dtypes import NUMPY

if TYPE_CHECKING:
    from mm2c_runtime.executors.cuda.program import Node, Program

WHOLE = 96 << 20  # bytes of a weight that is read at once; of a larger one, the rows that are needed
_NARROW = ("bf16", "f16")
_EXPERTS = ("M2MoeFp8", "M2MoeBf16", "M2MoeExpertsFp8", "M2MoeExpertsBf16", "M2MoeExpertsDense")
_DTYPE_ATTRIBUTES = ("to", "out_dtype")


def to_torch(array: Any) -> Tensor:
    """A stored array without a copy where it is writable; torch takes no ml_dtypes."""
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype == NUMPY["bf16"]:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype == NUMPY["e4m3"]:
        return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(array)


@dataclass(frozen=True)
class _Call:
    """A node with its attributes as they are run."""

    name: str
    op: str
    attributes: Mapping[str, Any]


class RankNodes:
    """Computes nodes of one rank's program.

    ``wide``: weights, constants and activations of 16 bits become f32; e4m3 weights keep their scales either way.
    ``forget`` drops the weights that were read.
    """

    def __init__(self, program: Program, source: TensorSource, experts: ExpertCache, *, wide: bool) -> None:
        self.program, self._source, self._experts, self._wide = program, source, experts, wide
        self._ops = ReferenceOps()
        self._weights: dict[str, Tensor] = {}
        self._constants = {name: self._constant(c) for name, c in program.constants.items()}

    def forget(self) -> None:
        self._weights.clear()

    def run(self, node: Node, values: Mapping[str, Any]) -> list[Any]:
        """The node's outputs, given what was computed before. DistCollective is not run here.

        Raises BundleError for a node that cannot be computed, naming it.
        """
        try:
            return self._run(node, values)
        except (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise BundleError(
                f"rank {self.program.rank}: node {node.name} ({node.op}) cannot be computed: {error}"
            ) from error

    def _run(self, node: Node, values: Mapping[str, Any]) -> list[Any]:
        attributes = {
            name: "f32" if self._wide and name in _DTYPE_ATTRIBUTES and value in _NARROW else value
            for name, value in node.attributes.items()
        }
        if node.op in _EXPERTS:
            return [self._moe(node, values)]
        if node.op == "Gather" and self._is_large(node.inputs[0]):
            return [self._gather(node.inputs[0], values[node.inputs[1]])]
        if node.op == "M2DenseLinear":
            return [self._dense(node, values, TORCH[attributes["out_dtype"]])]
        inputs = [self._value(name, values) for name in node.inputs]
        if node.domain == "":
            return _standard(node.op, attributes, inputs)
        return list(self._ops.run(_Call(node.name, node.op, attributes), inputs))

    def _value(self, name: str, values: Mapping[str, Any]) -> Any:
        if not name:  # an optional input that is left out
            return None
        if name in values:
            return values[name]
        if name in self._constants:
            return self._constants[name]
        if name not in self._weights:
            self._weights[name] = self._widened(to_torch(read_whole(self._source, name)))
        return self._weights[name]

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._widened(to_torch(self._source.rows(name, start, stop)))

    def _widened(self, value: Tensor) -> Tensor:
        return value.float() if self._wide and value.dtype in (torch.bfloat16, torch.float16) else value

    def _is_large(self, name: str) -> bool:
        return name in self.program.weights and size_of(self._source, name) > WHOLE

    def _constant(self, constant: Any) -> Any:
        kind = constant.type
        if kind.dtype in shapes.NUMPY:
            return np.array(constant.data, shapes.NUMPY[kind.dtype]).reshape(kind.shape)
        return self._widened(
            torch.tensor(constant.data, dtype=torch.float32).to(TORCH[kind.dtype]).view(kind.shape)
        )

    def _gather(self, name: str, at: Tensor) -> Tensor:
        """Rows of a large table: only these are read."""
        found = {row: self._rows(name, row, row + 1) for row in sorted(set(at.flatten().tolist()))}
        return torch.cat([found[row] for row in at.flatten().tolist()]).view(*at.shape, -1)

    def _dense(self, node: Node, values: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
        x, weight = self._value(node.inputs[0], values), node.inputs[1]
        if not self._is_large(weight):
            return dense_linear(x, self._value(weight, values), dtype)
        count = self._source.shape(weight)[0]
        step = max(1, WHOLE * count // size_of(self._source, weight))
        parts = [
            dense_linear(x, self._rows(weight, start, min(start + step, count)), dtype)
            for start in range(0, count, step)
        ]
        return torch.cat(parts, -1)

    def _moe(self, node: Node, values: Mapping[str, Any]) -> Tensor:
        """As the op's own reference, with each expert read when a token has chosen it."""
        a = node.attributes
        x, first, second = (self._value(name, values) for name in node.inputs[:3])
        if node.op.startswith("M2MoeExperts"):
            weights, ids = first, second
        else:
            weights, ids = moe_routing.reference(first, second, a["top_k"])
        stacks = node.inputs[3:]
        count = self._source.shape(stacks[0])[0]

        def dense(expert: int) -> tuple[Tensor, Tensor]:
            stored = [self._rows(name, expert, expert + 1)[0] for name in stacks]
            if len(stored) == 2:
                return stored[0], stored[1]
            w13, w13_scale, w2, w2_scale = stored
            n, k = a["block_n"], a["block_k"]
            return dequantize_reference(w13, w13_scale, n, k, parts=2), dequantize_reference(
                w2, w2_scale, k, n
            )

        def kept(expert: int) -> tuple[Tensor, Tensor]:
            pair: list[Tensor] = []

            def part(place: int) -> Callable[[], Tensor]:
                def make() -> Tensor:
                    if not pair:
                        pair.extend(dense(expert))
                    return pair[place]

                return make

            keys = [(self.program.rank, name, expert) for name in (stacks[0], stacks[-1])]
            return self._experts.get(keys[0], part(0)), self._experts.get(keys[1], part(1))

        return experts_reference(x, weights, ids, a["first_expert"], count, kept)


def _standard(op: str, attributes: Mapping[str, Any], inputs: Sequence[Any]) -> list[Any]:
    """On the host where all inputs are there, as the runtime does."""
    here = all(value is None or isinstance(value, np.ndarray) for value in inputs)
    function: Callable[..., Any] | None = (shapes if here else standard).OPS.get(op)
    if function is None:
        raise ValueError(f"this runtime has no {op}{' of host values' if here else ''}")
    made = function(attributes, *inputs)
    return list(made) if op == "Split" else [made]
