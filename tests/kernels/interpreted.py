"""Plugins that compute on the CPU: a launcher for Library.set_launcher that interprets each kernel launch.

The plugin's own C++ chooses kernels, grids, arguments and workspace; the kernels then run in Triton's corrected
interpreter on the memory that the arguments point to. Every address is checked: a kernel that reads outside the
tensors and the workspace it was given, or writes to an input, fails the launch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter as upstream

from mm2c_plugins.host import Launch, Plugin, TensorArg
from mm2c_plugins.kernels import catalogue

TORCH_TYPES = {
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float8_e4m3fn: "e4m3",
    torch.uint8: "u8",
}
DTYPES = {name: dtype for dtype, name in TORCH_TYPES.items()}


class Memory:
    """The regions that kernels may touch."""

    def __init__(self) -> None:
        self._starts = np.empty(0, np.uint64)
        self._ends = np.empty(0, np.uint64)
        self._writable = np.empty(0, np.bool_)

    def allow(self, tensors: Sequence[tuple[torch.Tensor, bool]]) -> None:
        """Allow exactly the storages of these tensors, each with whether it may be written."""
        regions: dict[tuple[int, int], bool] = {}
        for tensor, writable in tensors:
            storage = tensor.untyped_storage()
            key = (storage.data_ptr(), storage.nbytes())
            regions[key] = regions.get(key, False) or writable
        ordered = sorted(regions.items())
        self._starts = np.array([start for (start, _), _ in ordered], np.uint64)
        self._ends = np.array([start + size for (start, size), _ in ordered], np.uint64)
        self._writable = np.array([writable for _, writable in ordered], np.bool_)

    def check(self, addresses: Any, mask: Any, size: int, *, write: bool) -> None:
        """Raise MemoryError if an address that the mask lets through lies outside."""
        chosen = addresses[np.broadcast_to(mask.astype(bool), addresses.shape)].astype(np.uint64)
        if not chosen.size:
            return
        at = np.searchsorted(self._starts, chosen, side="right").astype(np.int64) - 1
        inside = (at >= 0) & (chosen + np.uint64(size) <= self._ends[at])
        if write:
            inside &= self._writable[at]
        if not inside.all():
            verb = "writes" if write else "reads"
            raise MemoryError(f"{verb} {int((~inside).sum())} of {chosen.size} numbers where it may not")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Check every load and store of the interpreter meanwhile."""
        builder = upstream.InterpreterBuilder
        load, store = builder.create_masked_load, builder.create_masked_store

        def checked_load(this: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            self.check(pointers.data, mask.data, _bytes(pointers), write=False)
            return load(this, pointers, mask, *rest)

        def checked_store(this: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self.check(pointers.data, mask.data, _bytes(pointers), write=True)
            return store(this, pointers, value, mask, *rest)

        builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
        try:
            yield
        finally:
            builder.create_masked_load, builder.create_masked_store = load, store


@dataclass
class Interpreter:
    """The launcher: ``library.set_launcher(Interpreter(90))``. ``launches`` keeps what ran."""

    sm: int
    memory: Memory = field(default_factory=Memory)
    launches: list[Launch] = field(default_factory=list)

    def __call__(self, launch: Launch) -> None:
        variant = variants(self.sm, launch.kernel).get(launch.variant)
        if variant is None:
            raise LookupError(
                f"the library's {launch.variant} is of other sources than these: build it again"
            )
        module: ModuleType = catalogue.load_kernel(launch.kernel)
        parameters = variant.parameters(module.PARAMETERS)
        check_launch(launch, variant, parameters)
        values = zip(parameters.items(), launch.args, strict=True)
        arguments = {name: _argument(kind, value) for (name, kind), value in values}
        constants = {name: False if name == "PDL" else value for name, value in variant.constants.items()}
        self.launches.append(launch)
        with self.memory.guard():
            getattr(module, variant.kernel)[launch.grid](**arguments, **constants)

    @property
    def kernels(self) -> list[str]:
        """The kernels that ran, in order."""
        return [launch.kernel for launch in self.launches]


@cache
def variants(sm: int, kernel: str) -> dict[str, catalogue.Variant]:
    """A kernel's variants for an architecture by their names."""
    found = catalogue.load_kernel(kernel).variants(sm, catalogue.load_tiles(sm))
    return {variant.name: variant for variant in found}


def check_launch(launch: Launch, variant: catalogue.Variant, parameters: dict[str, str]) -> None:
    """Raise ValueError where a launch breaks what the compiled kernel relies on."""
    if launch.types != catalogue.letters(parameters):
        raise ValueError(f"{launch.variant} is launched with {launch.types}, but takes {parameters}")
    if launch.block != variant.num_warps * 32:
        raise ValueError(
            f"{launch.variant} has blocks of {variant.num_warps * 32} threads, not {launch.block}"
        )
    if not all(
        0 < extent <= limit for extent, limit in zip(launch.grid, (2**31 - 1, 65535, 65535), strict=True)
    ):
        raise ValueError(f"{launch.variant}: grid {launch.grid}")
    for (name, kind), value in zip(parameters.items(), launch.args, strict=True):
        if (kind.startswith("*") or name in variant.multiples) and int(value) % 16:
            raise ValueError(f"{launch.variant}: {name} = {value} is no multiple of 16")


class Run:
    """One plugin on tensors: makes its outputs and workspace, launches, and gives the outputs."""

    def __init__(self, plugin: Plugin, interpreter: Interpreter) -> None:
        self.plugin, self.interpreter, self.op = plugin, interpreter, plugin.attach()

    def __call__(self, *inputs: torch.Tensor, tactic: int | None = None) -> list[torch.Tensor]:
        """Aliased outputs are the input tensors themselves, which are then written. The workspace is exactly as large
        as the plugin asked for; it and fresh outputs start as NaN bytes.
        """
        described = [argument(tensor) for tensor in inputs]
        specs = self.plugin.outputs(described)
        self.plugin.check([*described, *specs])
        aliases = self.plugin.aliases()
        outputs = [
            inputs[aliases[i]] if i in aliases else _filled(tuple(map(int, spec.shape)), DTYPES[spec.dtype])  # type: ignore[arg-type]
            for i, spec in enumerate(specs)
        ]
        arguments = [argument(tensor) for tensor in outputs]
        workspace = _filled((self.plugin.workspace(described, arguments),), torch.uint8)
        written = [(tensor, True) for tensor in (*outputs, workspace)]
        self.interpreter.memory.allow([*((tensor, False) for tensor in inputs), *written])
        if tactic is not None:
            self.op.set_tactic(tactic)
        self.op.enqueue(described, arguments, workspace.data_ptr())
        return outputs


def argument(tensor: torch.Tensor) -> TensorArg:
    return TensorArg(TORCH_TYPES[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())


def _filled(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """All bytes 0xff: NaN in every float type, -1 in the integers."""
    tensor = torch.empty(shape, dtype=dtype)
    tensor.view(torch.uint8).fill_(0xFF)
    return tensor


def _bytes(pointers: Any) -> int:
    return max(1, int(pointers.get_element_ty().primitive_bitwidth) // 8)


def _argument(kind: str, value: int | float) -> Any:
    """A kernel argument with the type that it has in compiled code, whatever its value."""
    if kind.startswith("*"):
        data = np.array([value], np.uint64)
    else:
        data = np.array([value], {"i32": np.int32, "i64": np.int64, "fp32": np.float32}[kind])
    triton_type = tl.str_to_ty(kind, None)
    return tl.tensor(upstream.TensorHandle(data, triton_type), triton_type)
