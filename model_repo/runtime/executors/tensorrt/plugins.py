"""The plugin library of a bundle's plans, in TensorRT's registry before they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.ops import Ops
from mm2c_runtime.executors.cuda.plugin_ops import PluginOps, open_library
from mm2c_runtime.executors.tensorrt.checks import REBUILD
from mm2c_runtime.executors.tensorrt.library import Library
from mm2c_runtime.manifest_tensorrt import PlanPlugins

NAMESPACE, VERSION = "mm2c", "1"  # of every creator
_REGISTERED: dict[
    str, str
] = {}  # version of our library by TensorRT's module: its registry is one of the process


def register_plugins(bundle: Path, plugins: PlanPlugins, library: Library) -> None:
    """Raises BundleError where the library of plugins is missing, cannot be loaded, or lacks a creator that the plans
    need; also where this process has registered one of another version, which cannot be replaced."""
    path = bundle / plugins.library
    if not path.is_file():
        raise BundleError("the plugin library is missing", where=str(path), remedy=REBUILD)
    name = library.module.__name__
    registry = library.module.get_plugin_registry()
    before = _REGISTERED.get(name)
    if before not in (None, plugins.version):
        raise BundleError(
            f"this process has registered the plugin library {before}, the plans need {plugins.version}",
            where=str(path),
            remedy="serve each bundle in a process of its own, as `mm2c serve` does",
        )
    lacking = _lacking(registry, plugins)
    if before is None and len(lacking) == len(plugins.creators):
        library.complaints.clear()
        if registry.load_library(str(path)) is None:
            raise BundleError(
                f"TensorRT cannot load the plugin library: {library.said()}", where=str(path), remedy=REBUILD
            )
        lacking = _lacking(registry, plugins)
    if lacking:
        raise BundleError(
            f"the plugin library has no creator {', '.join(lacking)} in the namespace {NAMESPACE}, "
            "which the plans need",
            where=str(path),
            remedy=f"`make plugins`, then {REBUILD}",
        )
    _REGISTERED[name] = plugins.version


def sampling_ops(bundle: Path, plugins: PlanPlugins | None, device: torch.device) -> Ops:
    """The plugin library's sampler; without one, whoever samples does so on the host."""
    if plugins is None or device.type == "cpu":
        return NoOps()
    return PluginOps(open_library(bundle, plugins.library, plugins.version), device)


class NoOps:
    """Plans compute everything."""

    samples = False

    def run(self, node: Any, inputs: Any) -> Any:
        raise NotImplementedError(f"a plan has no ops to run {node.op} with")


def _lacking(registry: Any, plugins: PlanPlugins) -> list[str]:
    return [name for name in plugins.creators if registry.get_creator(name, VERSION, NAMESPACE) is None]
