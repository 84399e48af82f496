"""A parsed network against the manifest's list of its inputs and outputs, and what it consists of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

DTYPES = {
    "FLOAT": "f32",
    "BF16": "bf16",
    "HALF": "f16",
    "INT32": "i32",
    "INT64": "i64",
    "BOOL": "bool",
    "FP8": "e4m3",
}  # names of the library's DataType


def differences(network: Any, tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where ``network`` has other inputs or outputs than ``tensors`` (PlanTensor as JSON values), one line each.

    A parser that drops an input would build a plan that computes something else.
    """
    found = {
        "input": [network.get_input(i) for i in range(network.num_inputs)],
        "output": [network.get_output(i) for i in range(network.num_outputs)],
    }
    lines = []
    for mode, values in found.items():
        there = {value.name: value for value in values}
        wanted = {tensor["name"]: tensor for tensor in tensors if tensor["mode"] == mode}
        lines += [f"{mode} {name} is not in the network" for name in wanted if name not in there]
        lines += [f"the network has an {mode} {name} of its own" for name in there if name not in wanted]
        for name, tensor in wanted.items():
            if name in there and (line := _difference(there[name], tensor)):
                lines.append(f"{mode} {name} {line}")
    return lines


def _difference(value: Any, tensor: Mapping[str, Any]) -> str:
    dtype = DTYPES.get(value.dtype.name, value.dtype.name)
    if dtype != tensor["dtype"]:
        return f"is {dtype}, the manifest says {tensor['dtype']}"
    shape, wanted = list(value.shape), tensor["shape"]
    deduced = tensor["mode"] == "output"  # then the library may know a size better, or not at all
    same = len(shape) == len(wanted) and all(
        has == (-1 if isinstance(size, str) else size) or (deduced and (has == -1 or isinstance(size, str)))
        for has, size in zip(shape, wanted, strict=True)
    )
    return "" if same else f"has shape {shape}, the manifest says {wanted}"


def composition(network: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Layers by kind, and by the dtype of their first output."""
    kinds: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kinds[layer.type.name.lower()] += 1
        if layer.num_outputs:
            dtype = layer.get_output(0).dtype.name
            dtypes[DTYPES.get(dtype, dtype.lower())] += 1
    return dict(kinds.most_common()), dict(dtypes.most_common())
