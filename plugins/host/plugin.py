"""A plugin: what TensorRT's builder asks of it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mm2c_plugins.host import fields, native, tensors
from mm2c_plugins.host.errors import PluginError, explained
from mm2c_plugins.host.fields import Field
from mm2c_plugins.host.op import Op
from mm2c_plugins.host.tensors import DTYPE_NAMES, DTYPES, Described, Extent, Shape, TensorSpec

if TYPE_CHECKING:
    from mm2c_plugins.host.library import Library


class Plugin:
    """Made by Library.create and Library.restore. Every method raises PluginError, which names ``layer``.

    Tensors are anything with ``dtype`` and ``shape`` (TensorSpec, TensorArg); an Extent in a shape stands for an
    unknown extent of an optimisation profile. A plugin of the runtime phase may know nothing of the builder's
    questions: all but ``serialize``, ``clone`` and ``attach``.
    """

    def __init__(self, library: Library, name: str, handle: int, layer: str) -> None:
        self.library, self.name = library, name
        self.layer = layer
        self._host, self._handle = library.host, handle
        weakref.finalize(self, self._host.destroy, handle).atexit = False

    @property
    def identity(self) -> tuple[str, str, str]:
        """Namespace, name and version as the plugin itself tells them."""
        name, version, namespace = native.texts()
        self._check(self._host.identity(self._handle, name, version, namespace) == 0)
        return tuple((t.value or b"").decode() for t in (namespace, name, version))  # type: ignore[return-value]

    @property
    def output_count(self) -> int:
        count: int = self._host.output_count(self._handle)
        self._check(count >= 0)
        return count

    def output_dtypes(self, input_dtypes: Sequence[str]) -> list[str]:
        """The outputs' types for inputs of these types."""
        given = native.integers([tensors.dtype_number(dtype) for dtype in input_dtypes])
        made = native.integers([0] * self.output_count)
        count = self.output_count
        self._check(self._host.output_dtypes(self._handle, given, len(input_dtypes), made, count) == 0)
        return [DTYPE_NAMES[number] for number in made[:count]]

    def output_shapes(
        self, input_shapes: Sequence[Shape], input_dtypes: Sequence[str] | None = None
    ) -> list[tuple[int | Extent, ...]]:
        """The outputs' shapes for inputs of these shapes; with ``input_dtypes`` the types are asked about too, so
        that wrong ones are refused.

        An extent that follows from unknown ones is an Extent: its values at the profile's min, opt and max.
        """
        if input_dtypes is not None:
            self.output_dtypes(input_dtypes)
        count = self.output_count
        made = tensors.room(count)
        given = tensors.pack_shapes(input_shapes)
        self._check(self._host.output_shapes(self._handle, given, len(input_shapes), made, count) == 0)
        return tensors.unpack_shapes(made, count)

    def outputs(self, inputs: Sequence[Described]) -> list[TensorSpec]:
        """The outputs for these inputs."""
        shapes = self.output_shapes([tensor.shape for tensor in inputs])
        dtypes = self.output_dtypes([tensor.dtype for tensor in inputs])
        return [TensorSpec(dtype, shape) for dtype, shape in zip(dtypes, shapes, strict=True)]

    def supports(self, descs: Sequence[Described]) -> bool:
        """Whether the plugin takes the inputs and then outputs of ``descs``, each position asked in turn."""
        return self._refused(descs) == -1

    def check(self, descs: Sequence[Described]) -> None:
        """Raise PluginError, saying what it would take, where ``supports`` is False."""
        position = self._refused(descs)
        if position < 0:
            return
        n_in = len(descs) - self.output_count
        kind, number = ("input", position) if position < n_in else ("output", position - n_in)
        given = descs[position]
        accepted = [
            dtype
            for dtype in DTYPES
            if self._takes(
                position, [*descs[:position], TensorSpec(dtype, tuple(given.shape)), *descs[position + 1 :]]
            )
        ]
        expected = (
            " or ".join(accepted) + ", linear" if accepted else "another number of tensors, rank or shape"
        )
        layout = getattr(given, "format", "linear")
        reason = f"does not take {kind} {number} as {given.dtype} {list(given.shape)}, {layout}; it expects {expected}"
        raise PluginError(explained(self.layer, self.name, reason))

    def aliases(self) -> dict[int, int]:
        """Which output shares which input's memory."""
        found = {
            output: self._host.aliased_input(self._handle, output) for output in range(self.output_count)
        }
        return {output: source for output, source in found.items() if source >= 0}

    def tactics(self) -> list[int]:
        """The tactics to choose from, empty where there is nothing to choose."""
        count = self._host.tactics(self._handle, native.integers([]), 0)
        self._check(count >= 0)
        made = native.integers([0] * count)
        self._check(self._host.tactics(self._handle, made, count) == count)
        return list(made[:count])

    def workspace(self, inputs: Sequence[Described], outputs: Sequence[Described]) -> int:
        """Bytes of scratch memory that a launch within these bounds needs. Configures the plugin first, as the
        builder does, so that wrong tensors are refused.
        """
        given = tensors.pack([*inputs, *outputs])
        self._check(self._host.configure(self._handle, given, len(inputs), len(outputs)) == 0)
        size: int = self._host.workspace(self._handle, given, len(inputs), len(outputs))
        self._check(size >= 0)
        return size

    def serialize(self) -> dict[str, Field]:
        """What an engine keeps of the plugin, by field name: the argument of Library.restore."""
        count = self._host.serialize(self._handle)
        self._check(count >= 0)
        found = {}
        for index in range(count):
            native_field = fields.NativeField()
            self._check(self._host.serialized(self._handle, index, native_field) == 0)
            field = fields.read(native_field)
            found[field.name] = field
        return found

    def clone(self) -> Plugin:
        handle = self._host.clone(self._handle)
        self._check(bool(handle))
        return Plugin(self.library, self.name, handle, self.layer)

    def attach(self) -> Op:
        """The plugin in an execution context, ready to launch; loads its kernels on a GPU."""
        handle = self._host.attach(self._handle)
        self._check(bool(handle))
        return Op(self.library, self.name, handle, self.layer)

    def _refused(self, descs: Sequence[Described]) -> int:
        n_out = self.output_count
        if len(descs) < n_out:
            raise PluginError(
                explained(self.layer, self.name, f"has {n_out} outputs, but {len(descs)} tensors are given")
            )
        position: int = self._host.refused_position(
            self._handle, tensors.pack(descs), len(descs) - n_out, n_out
        )
        self._check(position != -2)
        return position

    def _takes(self, position: int, descs: Sequence[Described]) -> bool:
        n_out = self.output_count
        given = tensors.pack(descs)
        return bool(self._host.takes_position(self._handle, position, given, len(descs) - n_out, n_out) == 1)

    def _check(self, fine: bool) -> None:
        if not fine:
            raise PluginError(explained(self.layer, self.name, self._host.reason()))
