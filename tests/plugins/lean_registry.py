"""Loads a plugin library into the registry of TensorRT's lean runtime and prints what it finds, as JSON.

lean_registry.py libmm2c_plugins.so < {"creator": {"attribute": value}}
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def lean_runtime() -> Any:
    """The bindings, over the lean library that their own package would look for elsewhere."""
    spec = importlib.util.find_spec("tensorrt_lean_libs")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations)))
    ctypes.CDLL(str(next(folder.glob("libnvinfer_lean.so.*"))), mode=ctypes.RTLD_GLOBAL)
    import tensorrt_lean_bindings

    return tensorrt_lean_bindings


def fields(trt: Any, attributes: dict[str, int | float]) -> tuple[Any, list[Any]]:
    """The attributes as fields, and the arrays that must outlive them."""
    arrays = {
        name: np.array([value], np.float32 if isinstance(value, float) else np.int32)
        for name, value in attributes.items()
    }
    kinds = {np.dtype(np.float32): trt.PluginFieldType.FLOAT32, np.dtype(np.int32): trt.PluginFieldType.INT32}
    made = [trt.PluginField(name, array, kinds[array.dtype]) for name, array in arrays.items()]
    return trt.PluginFieldCollection(made), [made, arrays]


def described(trt: Any, creator: Any, attributes: dict[str, Any], phase: str) -> dict[str, Any] | None:
    collection, alive = fields(trt, attributes)
    plugin = creator.create_plugin("layer", collection, getattr(trt.TensorRTPhase, phase))
    del alive
    if plugin is None:
        return None
    kinds = (trt.PluginCapabilityType.CORE, trt.PluginCapabilityType.BUILD, trt.PluginCapabilityType.RUNTIME)
    capabilities = [plugin.get_capability_interface(kind) for kind in kinds]
    core = capabilities[0]
    return {
        "name": core.plugin_name,
        "namespace": core.plugin_namespace,
        "version": core.plugin_version,
        "capabilities": sum(capability is not None for capability in capabilities),
    }


def main() -> None:
    trt = lean_runtime()
    wanted = json.load(sys.stdin)
    registry = trt.get_plugin_registry()
    before = {creator.name for creator in registry.all_creators}
    registry.load_library(sys.argv[1])
    creators = [c for c in registry.all_creators if c.name not in before]
    plugins: dict[str, Any] = {}
    refused: Any = None
    for name, attributes in wanted.items():
        creator = registry.get_creator(name, "1", "mm2c")
        if creator is None:
            continue
        plugins[name] = {"fields": [field.name for field in creator.field_names]}
        for phase in ("BUILD", "RUNTIME"):
            plugins[name][phase] = described(trt, creator, attributes, phase)
        refused = refused or described(trt, creator, {**attributes, "no_such_attribute": 1}, "BUILD")
    listed = [[c.name, c.plugin_version, c.plugin_namespace] for c in creators]
    print(json.dumps({"creators": listed, "plugins": plugins, "refused": refused}))


if __name__ == "__main__":
    main()
