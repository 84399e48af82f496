"""The dialect's torch references as the provider of a cuda program's ops: the same program, computed on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mm2c.dialect import ops

if TYPE_CHECKING:
    from torch import Tensor

_ONNX_DTYPES = {"f32": 1, "f16": 10, "bf16": 16}  # a program names dtypes where ONNX has numbers
_VIEWS = ("q_stride", "k_stride", "v_stride")  # how kernels read views; torch's know themselves
_CACHES = {"M2PagedAttention": ((11, 1), (12, 2))}  # (input, output) of one buffer


class ProgramNode(Protocol):
    """A node of ``cuda.json``: the op's name and its attributes by name."""

    @property
    def op(self) -> str: ...

    @property
    def attributes(self) -> Mapping[str, Any]: ...


class ReferenceOps:
    """``run`` computes nodes of domain ``mm2c``, on the device of their inputs. Imports torch on first use."""

    def run(self, node: ProgramNode, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The node's outputs. Caches are written in place: a cache output is the cache input itself.

        Raises:
            KeyError: the dialect has no such op.
            ValueError: inputs or attributes are not the op's.
        """
        spec = ops[node.op]
        names = list(spec.schema.attributes)
        given = {name: value for name, value in node.attributes.items() if name not in _VIEWS}
        if set(given) != set(names) or len(inputs) != len(spec.schema.inputs):
            raise ValueError(
                f"{node.op} takes {len(spec.schema.inputs)} inputs and attributes {names}, "
                f"not {len(inputs)} and {sorted(given)}"
            )
        if isinstance(kind := given.get("out_dtype"), str):
            given["out_dtype"] = _ONNX_DTYPES[kind]
        result = spec.register_torch().op(*inputs, **given)
        outputs = list(result) if isinstance(result, (list, tuple)) else [result]
        for source, target in _CACHES.get(node.op, ()):
            inputs[source].copy_(outputs[target])
            outputs[target] = inputs[source]
        return outputs
