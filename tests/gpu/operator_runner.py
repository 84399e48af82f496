"""A plugin on tensors of the device: outputs and workspace are allocated once, runs only launch."""

from __future__ import annotations

from typing import Any

import torch
from sizes import DEVICE

from mm2c_plugins.host import Library, TensorArg

DTYPES = {
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float8_e4m3fn: "e4m3",
}
TORCH = {name: dtype for dtype, name in DTYPES.items()}


def argument(tensor: torch.Tensor, shape: tuple[int, ...] | None = None) -> TensorArg:
    return TensorArg(DTYPES[tensor.dtype], tuple(tensor.shape) if shape is None else shape, tensor.data_ptr())


class Operator:
    """Runs one plugin on fixed tensors. ``outputs`` are overwritten by each run; aliased ones are inputs."""

    def __init__(self, library: Library, name: str, attributes: dict[str, Any], inputs: list[torch.Tensor],
                 tactic: int = 0) -> None:  # fmt: skip
        plugin = library.create(name, attributes)
        arguments = [argument(tensor) for tensor in inputs]
        shapes, dtypes = [a.shape for a in arguments], [a.dtype for a in arguments]
        aliases = plugin.aliases()
        self.outputs = []
        for index, (shape, dtype) in enumerate(
            zip(plugin.output_shapes(shapes, dtypes), plugin.output_dtypes(dtypes), strict=True)
        ):
            if index in aliases:
                self.outputs.append(inputs[aliases[index]])
            else:
                self.outputs.append(torch.empty(shape, dtype=TORCH[dtype], device=DEVICE))
        results = [argument(tensor) for tensor in self.outputs]
        size = plugin.workspace(arguments, results)
        self.workspace = torch.empty(max(size, 1), dtype=torch.uint8, device=DEVICE)
        self._op = plugin.attach()
        if tactic:
            self._op.set_tactic(tactic)
        self._op.shape_change(arguments, results)
        self._inputs = inputs  # kept alive: the prepared call knows their addresses
        self._prepared = self._op.prepare(arguments, results, self.workspace.data_ptr())

    def __call__(self) -> list[torch.Tensor]:
        self._prepared.launch(torch.cuda.current_stream().cuda_stream if DEVICE == "cuda" else 0)
        return self.outputs

    def poisoned(self) -> list[torch.Tensor]:
        """A run whose outputs and workspace held NaN before: what the plugin does not write shows."""
        self.workspace.fill_(255)
        for tensor in self.outputs:
            if tensor.data_ptr() not in {i.data_ptr() for i in self._inputs}:
                tensor.view(torch.uint8).fill_(255)
        return self()


def tactics(library: Library, name: str, attributes: dict[str, Any], inputs: list[torch.Tensor]) -> list[int]:
    """The tactics beside the default one that TensorRT would time."""
    return [int(tactic) for tactic in library.create(name, attributes).tactics() if tactic]
