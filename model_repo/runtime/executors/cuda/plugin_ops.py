"""The dialect's ops through the plugin library: one attached plugin a node, launched on torch's current stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.dtypes import NAMES, TORCH
from mm2c_runtime.executors.cuda.ops import Call
from mm2c_runtime.executors.cuda.program import ABI

# Inputs that may be views of wider rows, and the attribute that gives such a row's width in elements.
_STRIDES = {
    "M2QkSumSquares": ("q_stride", "k_stride"),
    "M2PagedAttention": ("q_stride", "k_stride", "v_stride"),
}
_SHAPES = 8  # launches that a node keeps prepared: of other shapes, the oldest is forgotten
_REBUILD = "build the bundle again with `mm2c build … --force`"
Signature = tuple[tuple[torch.dtype, torch.Size], ...]


@dataclass(frozen=True, slots=True)
class _Shaped:
    """A launch for tensors of certain types and shapes. ``outputs``: dtype and shape of a new one, or the number of
    the input that it is. ``workspace``: bytes."""

    prepared: Any
    outputs: list[tuple[torch.dtype, tuple[int, ...]] | int]
    workspace: int


@dataclass(slots=True)
class _Attached:
    """A node's plugin. ``strides``: of its first inputs, 0 for contiguous."""

    plugin: Any
    op: Any
    strides: tuple[int, ...]
    shaped: dict[Signature, _Shaped] = field(default_factory=dict)


class PluginOps:
    """Outputs and workspace come from torch's allocator, so that in a captured graph they lie in its pool and keep
    their addresses. A plugin is made and attached, and its kernels are loaded, when its node first runs, and a
    launch is prepared when it first has these shapes: a step like an earlier one only launches.

    ``run`` raises mm2c_plugins.host.PluginError, with the library's own words."""

    samples = True

    def __init__(self, library: Any, device: torch.device) -> None:
        """``library``: of mm2c_plugins.host. On the CPU device its launcher must have been replaced."""
        self._library, self._device = library, device
        self._attached: dict[str, _Attached] = {}

    def run(self, node: Call, inputs: Sequence[Tensor]) -> list[Tensor]:
        attached = self._attached.get(node.name)
        if attached is None:
            attached = self._attached[node.name] = self._attach(node)
        inputs = _laid_out(node, inputs, attached.strides)
        signature = tuple([(x.dtype, x.shape) for x in inputs])
        shaped = attached.shaped.get(signature)
        if shaped is None:
            shaped = self._shape(attached, signature)
        outputs = [
            inputs[made]
            if isinstance(made, int)
            else torch.empty(made[1], dtype=made[0], device=self._device)
            for made in shaped.outputs
        ]
        workspace = 0
        if shaped.workspace:
            scratch = torch.empty(shaped.workspace, dtype=torch.uint8, device=self._device)
            workspace = (
                scratch.data_ptr()
            )  # whoever gets this memory next uses it after this launch, in stream order
        shaped.prepared.point([x.data_ptr() for x in (*inputs, *outputs)], workspace)
        shaped.prepared.launch(self._stream())
        return outputs

    def _attach(self, node: Call) -> _Attached:
        plugin = self._library.create(node.op, dict(node.attributes), layer=node.name)
        strides = tuple(int(node.attributes.get(name, 0)) for name in _STRIDES.get(node.op, ()))
        return _Attached(plugin, plugin.attach(), strides)

    def _shape(self, attached: _Attached, signature: Signature) -> _Shaped:
        from mm2c_plugins.host import TensorArg

        plugin = attached.plugin
        dtypes, shapes = [NAMES[dtype] for dtype, _ in signature], [tuple(shape) for _, shape in signature]
        made = list(zip(plugin.output_dtypes(dtypes), plugin.output_shapes(shapes), strict=True))
        # Types and shapes alone: where the tensors lie is told at every launch.
        before = [TensorArg(dtype, shape, 0) for dtype, shape in zip(dtypes, shapes, strict=True)]
        after = [TensorArg(dtype, tuple(shape), 0) for dtype, shape in made]
        plugin.check([*before, *after])
        aliases = plugin.aliases()
        shaped = _Shaped(
            attached.op.prepare(before, after),
            [aliases.get(place, (TORCH[dtype], tuple(shape))) for place, (dtype, shape) in enumerate(made)],
            int(plugin.workspace(before, after)),
        )
        if len(attached.shaped) >= _SHAPES:
            del attached.shaped[next(iter(attached.shaped))]
        attached.shaped[signature] = shaped
        return shaped

    def _stream(self) -> int:
        return int(torch.cuda.current_stream(self._device).cuda_stream) if self._device.type == "cuda" else 0


def _laid_out(node: Call, inputs: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
    """Inputs as the plugin reads them: contiguous, or rows at the stride that the node names."""
    found = []
    for place, x in enumerate(inputs):
        stride = strides[place] if place < len(strides) else 0
        if stride and not has_row_stride(x, stride):
            raise ValueError(f"{node.name}: rows of input {place} are not {stride} apart: {x.stride()}")
        found.append(x if stride else x.contiguous())
    return found


def has_row_stride(x: Tensor, stride: int) -> bool:
    """Whether row n of the flattened x[…, N] begins at element n · stride, and is contiguous itself."""
    expected = stride
    for axis in range(x.ndim - 2, -1, -1):
        if x.shape[axis] != 1 and x.stride(axis) != expected:
            return False
        expected *= x.shape[axis]
    return bool(x.shape[-1] == 1 or x.stride(-1) == 1)


def open_library(bundle: Path, library: str, version: str) -> Any:
    """The bundle's plugin library. Raises BundleError where it cannot be loaded, or is not of ``version``, which the
    programs were lowered for."""
    path = bundle / library
    if not path.is_file():
        raise BundleError("the plugin library is missing", where=str(path), remedy=_REBUILD)
    try:
        from mm2c_plugins.host import Library, PluginError
    except ImportError as error:
        raise BundleError(
            f"the plugin library's host is missing: {error}", where=str(path), remedy=_REBUILD
        ) from None
    try:
        found = Library(path)
    except (PluginError, OSError) as error:
        raise BundleError(
            f"the plugin library cannot be loaded: {error}", where=str(path), remedy=_REBUILD
        ) from None
    if found.abi != ABI or found.version != version:
        raise BundleError(
            f"the plugin library is {found.version} with interface {found.abi}, the bundle was built for {version} "
            f"with interface {ABI}",
            where=str(path),
            remedy=_REBUILD,
        )
    return found
