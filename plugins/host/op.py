"""A plugin in an execution context, and its prepared launches."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from mm2c_plugins.host import tensors
from mm2c_plugins.host.errors import PluginError, explained
from mm2c_plugins.host.tensors import Described, TensorArg

if TYPE_CHECKING:
    from mm2c_plugins.host.library import Library


class Op:
    """Made by Plugin.attach. One thread at a time uses an op and its prepared launches.

    Every method raises PluginError, which names ``layer`` and gives the library's reason.
    """

    def __init__(self, library: Library, name: str, handle: int, layer: str) -> None:
        self.library, self.name, self.layer = library, name, layer
        self._host, self._handle = library.host, handle
        self._last: tuple[list[tuple[str, tuple[int, ...]]], Prepared] | None = None
        weakref.finalize(self, self._host.detach, handle).atexit = False

    def shape_change(self, inputs: Sequence[Described], outputs: Sequence[Described]) -> None:
        """Tell the plugin the tensors of the launches to come; it refuses what it cannot run. Prepared launches do
        so by themselves.
        """
        given = tensors.pack([*inputs, *outputs])
        if self._host.shape_change(self._handle, given, len(inputs), len(outputs)):
            fail(self.library, self.name, self.layer)

    def set_tactic(self, tactic: int) -> None:
        """Use one of Plugin.tactics() in place of the plugin's own choice."""
        if self._host.set_tactic(self._handle, tactic):
            fail(self.library, self.name, self.layer)

    def prepare(
        self, inputs: Sequence[TensorArg], outputs: Sequence[TensorArg], workspace: int = 0
    ) -> Prepared:
        """A launch of these tensors that can be repeated cheaply. ``workspace`` is the address of
        Plugin.workspace() bytes.
        """
        return Prepared(self, self._handle, inputs, outputs, workspace)

    def enqueue(
        self, inputs: Sequence[TensorArg], outputs: Sequence[TensorArg], workspace: int = 0, stream: int = 0
    ) -> None:
        """Launch once on ``stream`` (a CUstream's address). Cheaper where types and shapes are those of the last
        call: the plugin then keeps its plan.
        """
        both = [*inputs, *outputs]
        shapes = [(tensor.dtype, tensor.shape) for tensor in both]
        last = self._last
        if last is not None and last[0] == shapes and last[1].inputs == len(inputs):
            call = last[1]
            call.point([tensor.pointer for tensor in both], workspace)
        else:
            call = self.prepare(inputs, outputs, workspace)
            self._last = shapes, call
        call.launch(stream)


class Prepared:
    """A launch of fixed types and shapes, made by Op.prepare. It needs nothing kept alive but the tensors' memory."""

    __slots__ = ("__weakref__", "_call", "_launch", "_owner", "_pointers", "inputs", "workspace")

    def __init__(
        self, op: Op, handle: int, inputs: Sequence[TensorArg], outputs: Sequence[TensorArg], workspace: int
    ) -> None:
        both = [*inputs, *outputs]
        host = op.library.host
        self._owner = op.library, op.name, op.layer
        self.inputs, self.workspace = len(inputs), workspace
        self._pointers = (ctypes.c_void_p * len(both))(*[tensor.pointer for tensor in both])
        self._call = host.prepare(handle, tensors.pack(both), len(inputs), len(outputs), self._pointers)
        if not self._call:
            fail(*self._owner)
        self._launch = host.launch
        weakref.finalize(self, host.discard, self._call).atexit = False

    def point(self, pointers: Sequence[int], workspace: int | None = None) -> None:
        """Move the tensors: the addresses of the inputs and then the outputs, and of the workspace if it moved."""
        if len(pointers) != len(self._pointers):
            _, name, layer = self._owner
            reason = f"has {len(self._pointers)} tensors, but {len(pointers)} addresses are given"
            raise PluginError(explained(layer, name, reason))
        self._pointers[:] = list(pointers)
        if workspace is not None:
            self.workspace = workspace

    def launch(self, stream: int = 0) -> None:
        """Enqueue on ``stream`` (a CUstream's address); without a GPU, the library's launcher runs meanwhile."""
        if self._launch(self._call, self.workspace, stream):
            fail(*self._owner)


def fail(library: Library, name: str, layer: str) -> NoReturn:
    """Raise the PluginError of the call that has just failed."""
    reason = explained(layer, name, library.host.reason())
    error = library.take_launcher_error()
    if error is not None and not isinstance(error, Exception):
        raise error  # the user's interrupt, an exit
    raised = f" ({type(error).__name__} in the launcher: {error})" if error is not None else ""
    raise PluginError(reason + raised) from error
