"""A library of plugins: its identity, creators and process-wide switches."""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm2c_plugins.host import fields, native
from mm2c_plugins.host.errors import PluginError, explained
from mm2c_plugins.host.fields import Field
from mm2c_plugins.host.launch import Launcher, NativeLauncher, read
from mm2c_plugins.host.plugin import Plugin

ABI = 1
NAME = "libmm2c_plugins.so"
BUILD = Path(__file__).resolve().parents[1] / "build"  # where a source tree has its libraries

# The launcher of each library: it keeps only the address, for as long as the process lives.
_launchers: dict[Path, Any] = {}

_PHASES = {"build": 0, "runtime": 1}
# mm2c/api.h: what each function returns and takes
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "abi": (ctypes.c_int, []),
    "version": (ctypes.c_char_p, []),
    "last_error": (ctypes.c_char_p, []),
    "set_launcher": (None, [NativeLauncher, ctypes.c_void_p]),
    "set_device": (ctypes.c_int, [ctypes.c_int, ctypes.c_int, ctypes.c_int]),
    "set_pdl": (None, [ctypes.c_int]),
    "kernels": (ctypes.c_size_t, [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]),
}


class Library:
    """An open plugin library.

    ``path`` is libmm2c_plugins.so or the folder that has it, by default the source tree's plugins/build; the host
    library libmm2c_host.so lies beside it. With ``expect_version`` a library of any other version is refused.
    ``abi``, ``version`` and ``creators`` (name → its fields) tell what it is. Raises PluginError.

    A library is loaded once a process: the launcher, the pretended device and dependent launch are everyone's.
    """

    def __init__(self, path: str | Path | None = None, *, expect_version: str | None = None) -> None:
        given = Path(path) if path is not None else BUILD
        self.path = (
            given / NAME if given.is_dir() else given
        ).absolute()  # a link's host lies beside the link
        if not self.path.is_file():
            raise PluginError(f"there is no plugin library at {self.path}")
        self.host = native.host(self.path.parent / native.NAME)
        self._handle = self.host.open(str(self.path).encode())
        if not self._handle:
            raise PluginError(f"cannot open the plugin library {self.path}: {self.host.reason()}")
        self._call = {name: self._function(name) for name in _FUNCTIONS}
        self.abi: int = self._call["abi"]()
        if self.abi != ABI:
            raise PluginError(
                f"the plugin library {self.path} has interface {self.abi}, this binding {ABI}: "
                "take both from the same bundle or build"
            )
        self.version: str = self._call["version"]().decode()
        if expect_version is not None and self.version != expect_version:
            raise PluginError(
                f"the plugin library {self.path} is version {self.version}, but {expect_version} is asked for"
            )
        self.creators: dict[str, tuple[Field, ...]] = {}
        self.namespaces: dict[str, tuple[str, str]] = {}  # creator → its namespace and version
        self._numbers: dict[str, int] = {}
        for number in range(self.host.creator_count(self._handle)):
            self._read_creator(number)
        self._failed = threading.local()  # .error: what the launcher raised in this thread

    def create(
        self, name: str, attributes: Mapping[str, Any], *, phase: str = "build", layer: str | None = None
    ) -> Plugin:
        """A plugin with the attributes (numbers, text or lists of numbers by field name).

        ``phase`` is "build" or "runtime", ``layer`` the name of the node, by default the plugin's. Raises
        PluginError for unknown names and values that the plugin refuses.
        """
        known = self._creator(name)
        try:
            given = fields.from_attributes(known, attributes)
        except PluginError as error:
            raise PluginError(explained(layer or name, name, str(error))) from None
        return self._make(name, given, phase, layer)

    def restore(self, name: str, serialized: Mapping[str, Field], *, layer: str | None = None) -> Plugin:
        """The plugin of which Plugin.serialize() gave ``serialized``, as an engine makes it: runtime phase."""
        self._creator(name)
        return self._make(name, list(serialized.values()), "runtime", layer)

    def create_with(
        self, name: str, given: Sequence[Field], *, phase: str = "build", layer: str | None = None
    ) -> Plugin:
        """A plugin with the fields exactly as given, types included: nothing is checked on the way."""
        self._creator(name)
        return self._make(name, given, phase, layer)

    def pretend_device(self, sm: int, sm_count: int = 132, max_shared: int = 232448) -> None:
        """Have the plugins choose kernels for compute capability ``sm`` (90 for 9.0), which has ``sm_count``
        multiprocessors and ``max_shared`` bytes of shared memory a block. 0 asks the CUDA driver again. Raises
        PluginError, and changes nothing, for a device that the library has no kernels for.
        """
        if self._call["set_device"](sm, sm_count, max_shared):
            reason = self._call["last_error"]().decode("utf-8", "replace")
            raise PluginError(reason.removeprefix("mm2c_plugins_set_device: "))

    def set_launcher(self, launcher: Launcher | None) -> None:
        """Have ``launcher`` called for every kernel launch in place of the CUDA driver; None restores the driver.

        It returns None or 0, or another number to make the launch fail. What it raises becomes the cause of the
        enqueue's PluginError.
        """
        if launcher is None:
            self._call["set_launcher"](NativeLauncher(), None)
            _launchers.pop(self.path, None)
            return

        def run(native_launch: Any, stream: int | None, _: int | None) -> int:
            try:
                return int(launcher(read(native_launch.contents, stream)) or 0)
            except BaseException as error:  # it must not pass through the library's frames
                self._failed.error = error
                return -1

        function = NativeLauncher(run)
        self._call["set_launcher"](function, None)
        _launchers[self.path] = function

    def set_pdl(self, on: bool) -> None:
        """Programmatic dependent launch, on devices that have it."""
        self._call["set_pdl"](int(on))

    def kernels(self, sm: int = 0) -> list[dict[str, Any]]:
        """The kernels that the library holds for an architecture (0: all): a dict each with kernel, variant, sm,
        block, shared, bytes, types and constants.
        """
        size = self._call["kernels"](sm, None, 0)
        text = ctypes.create_string_buffer(size)
        self._call["kernels"](sm, text, size)
        listed: list[dict[str, Any]] = json.loads(text.value)
        return listed

    def take_launcher_error(self) -> BaseException | None:
        """What the launcher raised in this thread since the last call, if anything."""
        error: BaseException | None = self._failed.__dict__.pop("error", None)
        return error

    def _function(self, name: str) -> Any:
        result, arguments = _FUNCTIONS[name]
        address = self.host.symbol(self._handle, f"mm2c_plugins_{name}".encode())
        if not address:
            raise PluginError(f"{self.path} is no plugin library of mm2c: it lacks mm2c_plugins_{name}")
        return ctypes.CFUNCTYPE(result, *arguments)(address)

    def _read_creator(self, number: int) -> None:
        name, version, namespace = native.texts()
        count = ctypes.c_int32()
        self.host.creator(self._handle, number, name, version, namespace, count)
        listed = []
        for index in range(count.value):
            field = fields.NativeField()
            self.host.creator_field(self._handle, number, index, field)
            listed.append(fields.read(field))
        found = (name.value or b"").decode()
        self.creators[found] = tuple(listed)
        self.namespaces[found] = ((namespace.value or b"").decode(), (version.value or b"").decode())
        self._numbers[found] = number

    def _creator(self, name: str) -> tuple[Field, ...]:
        if name not in self.creators:
            raise PluginError(
                f"{self.path} has no plugin {name!r}; it has {', '.join(sorted(self.creators))}"
            )
        return self.creators[name]

    def _make(self, name: str, given: Sequence[Field], phase: str, layer: str | None) -> Plugin:
        if phase not in _PHASES:
            raise PluginError(f"{phase!r} is no phase; the phases are build and runtime")
        array, alive = fields.native_array(given)
        handle = self.host.create(
            self._handle, self._numbers[name], (layer or name).encode(), array, len(given), _PHASES[phase]
        )
        del alive
        if not handle:
            raise PluginError(explained(layer or name, name, self.host.reason()))
        return Plugin(self, name, handle, layer or name)
