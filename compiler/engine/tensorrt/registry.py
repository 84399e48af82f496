"""Our plugin library in TensorRT's plugin registry: loaded, its creators found, and plugins made as TensorRT does.

Plugins are the library's own (IPluginV3): Python's quickly deployable ones have no workspace and one kernel a node, so
that nothing here needs ``tensorrt.plugin``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm2c.engine.plugin_library import ABI, REMEDY
from mm2c.engine.tensorrt.plugin_check import Phase
from mm2c.engine.tensorrt.plugin_nodes import Given, PluginNode, plugin_nodes
from mm2c.errors import UserError

NAMESPACE = "mm2c"
_SYMBOLS = (
    "getCreators",
    "setLoggerFinder",
    "mm2c_plugins_abi",
    "mm2c_plugins_version",
    "mm2c_plugins_last_error",
)


class LoadedPlugins:
    """The library's creators in the registry of module ``trt`` (tensorrt); ``Creators`` for ``check_nodes``.

    ``creators``: by name, those of namespace "mm2c". Keep it for as long as plugins are made.
    """

    def __init__(self, trt: Any, path: Path, version: str, library: ctypes.CDLL, handle: Any) -> None:
        self.trt, self.path, self.version = trt, path, version
        self._library, self._handle = library, handle
        self.creators: dict[str, Any] = {
            creator.name: creator
            for creator in trt.get_plugin_registry().all_creators
            if creator.plugin_namespace == NAMESPACE
        }

    def fields(self, op: str, namespace: str, version: str) -> Sequence[str] | None:
        creator = self._creator(op, namespace, version)
        return None if creator is None else [field.name for field in creator.field_names]

    def create(self, node: PluginNode, fields: Mapping[str, Given], phase: Phase) -> str:
        creator = self._creator(node.op, node.namespace, node.version)
        collection, alive = plugin_fields(self.trt, fields)
        plugin = creator.create_plugin(node.name, collection, getattr(self.trt.TensorRTPhase, phase.upper()))
        del alive
        if plugin is None:
            reason = str(self._library.mm2c_plugins_last_error().decode()).removeprefix(f"{node.op}: ")
            return reason or "its creator makes no plugin"
        return self._difference(plugin, node)

    def _creator(self, op: str, namespace: str, version: str) -> Any:
        return self.trt.get_plugin_registry().get_creator(op, version, namespace)

    def _difference(self, plugin: Any, node: PluginNode) -> str:
        """What of the plugin is not as the node and this very library have it."""
        kinds = self.trt.PluginCapabilityType
        core = plugin.get_capability_interface(kinds.CORE)
        identity = (core.plugin_name, core.plugin_version, core.plugin_namespace)
        if identity != (node.op, node.version, node.namespace):
            return f"its creator made {'/'.join(identity)}"
        build, runtime = (plugin.get_capability_interface(kind) for kind in (kinds.BUILD, kinds.RUNTIME))
        if build is None or runtime is None:
            return "has no interface for building or for running"
        if build.num_outputs != len(node.outputs):
            return f"has {build.num_outputs} outputs, the node {len(node.outputs)}"
        # the library writes its version into what tells timings apart
        if not str(build.timing_cache_id).endswith(self.version):
            return f"is of another library that this process loaded before ({build.timing_cache_id})"
        return ""


def plugin_fields(trt: Any, fields: Mapping[str, Given]) -> tuple[Any, list[Any]]:
    """A PluginFieldCollection of module ``trt``, and what must live as long as it is used: the collection points at
    memory that Python owns."""
    import numpy as np

    types = trt.PluginFieldType
    kinds = {
        "int32": (np.int32, types.INT32),
        "float32": (np.float32, types.FLOAT32),
        "char": (np.int8, types.CHAR),
    }
    arrays, made = [], []
    for name, (kind, value) in fields.items():
        dtype, field_type = kinds[kind]
        array = np.frombuffer(value, dtype) if isinstance(value, bytes) else np.array(value, dtype)
        arrays.append(array)
        made.append(trt.PluginField(name, array, field_type))
    return trt.PluginFieldCollection(made), [made, arrays]


def load_plugins(trt: Any, path: Path, *, version: str = "") -> LoadedPlugins:
    """Load a plugin library into the registry of module ``trt`` (tensorrt, any package with its interface), for this
    process and for good; loading it again changes nothing.

    ``version``: of the library that a bundle's graphs were made for; empty: any.

    Raises:
        UserError: no plugin library of mm2c, one of another interface or version, or one that TensorRT does not take.
    """
    path = path.absolute()
    library = _opened(path)
    found = str(library.mm2c_plugins_version().decode())
    if version and found != version:
        raise UserError(
            f"the plugin library has version {found}, the graphs were made for {version}",
            where=str(path),
            remedy="take the library that lies in the bundle, or build the bundle again",
        )
    handle = trt.get_plugin_registry().load_library(str(path))
    loaded = LoadedPlugins(trt, path, found, library, handle)
    if not loaded.creators:  # the handle says nothing: it is None for a library that is loaded already too
        raise UserError(
            f"TensorRT {trt.__version__} does not take the plugin library: none of its creators was registered",
            where=str(path),
            remedy=f"build it again with this TensorRT's headers: `TENSORRT_INCLUDE=FOLDER {REMEDY}`",
        )
    return loaded


def _opened(path: Path) -> ctypes.CDLL:
    """The library with its own C interface, which is asked before TensorRT is: that reports nothing but None."""
    if not path.is_file():
        raise UserError("there is no plugin library", where=str(path), remedy=f"`{REMEDY}` in mm2c's folder")
    again = f"build it again: `{REMEDY}`"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(
            f"this is no library that can be loaded: {error}", where=str(path), remedy=again
        ) from None
    lacking = [symbol for symbol in _SYMBOLS if not hasattr(library, symbol)]
    if lacking:
        raise UserError(
            f"this is no plugin library of mm2c: it does not export {', '.join(lacking)}",
            where=str(path),
            remedy=again,
        )
    abi = int(library.mm2c_plugins_abi())
    if abi != ABI:
        raise UserError(
            f"the plugin library has interface {abi}, this mm2c needs {ABI}", where=str(path), remedy=again
        )
    for name in ("mm2c_plugins_version", "mm2c_plugins_last_error"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


def check_taken(trt: Any, network: Any, graph: bytes) -> None:
    """That the parser made a plugin of every plugin node of ``graph`` (serialised ONNX), from which it made
    ``network``. Where it finds no creator it takes the node's function without a word: a plan of those computes the
    same, many times slower.

    Raises:
        UserError: naming how many nodes are functions.
    """
    nodes = plugin_nodes(graph)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    taken = sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)
    if taken < len(nodes):
        raise UserError(
            f"TensorRT {trt.__version__} made plugins of {taken} nodes of {len(nodes)}, and took the functions of the "
            f"others ({', '.join(sorted({node.op for node in nodes}))})",
            where="TensorRT's ONNX parser",
            remedy="its parser must look for creators in the registry that the process has loaded the plugin library "
            "into: take libnvinfer and libnvonnxparser of one version",
        )
