"""Everything that TensorRT plans need on the machine that builds them, asked at once and before any work."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mm2c.dialect import ops
from mm2c.engine.plugin_library import NAMES, PluginLibrary
from mm2c.engine.plugin_library import find_library as find_plugin_library
from mm2c.engine.select import SUPPORTED, find_gpu
from mm2c.engine.tensorrt.library import Library, find_library
from mm2c.engine.tensorrt.plugin_check import Checked, Creators, HostCreators, check_nodes
from mm2c.engine.tensorrt.plugin_nodes import NotAField, plugin_nodes
from mm2c.engine.tensorrt.registry import NAMESPACE, load_plugins
from mm2c.errors import UserError
from mm2c_plugins.host import PluginError

ENGINE = "tensorrt"
NCCL = "libnccl.so.2"
WHEEL = "nvidia.nccl"  # the package of nvidia-nccl-cu13, which torch's build with CUDA brings
CREATOR_VERSION = "1"
DEFER = "--defer-plan prepares all but the plans here; `mm2c build --finish BUNDLE` on the GPU machine builds them"
Found = TypeVar("Found")
FINISH = "run `mm2c build --finish` where these are; nothing of the bundle was changed"


@dataclass(frozen=True)
class Ready:
    """``module``: TensorRT; ``gpu``: compute capability of the GPU that kernels are timed on, as "9.0"; both None for a
    build that leaves its plans to another machine. ``plugins``: the library that the bundle carries."""

    plugins: PluginLibrary
    module: Library | None = None
    gpu: str | None = None


def check_tensorrt_machine(*, ranks: int, defer: bool) -> Ready:
    """What `mm2c build --engine tensorrt` needs.

    ``ranks``: of the model, each with a GPU of its own when it is served. ``defer``: plans are left to another machine,
    so that the plugin library alone must be here.

    Raises:
        UserError: one message that lists everything that is missing.
    """
    missing: list[str] = []
    plugins = _asked(missing, _plugin_library)
    if defer:
        _refuse(missing, "the graphs cannot be prepared", plugins_remedy())
        assert plugins is not None
        return Ready(plugins)
    module, gpu = check_machine(ranks, missing, plugins.architectures if plugins else None)
    _refuse(
        missing,
        "this machine cannot build TensorRT plans",
        f"{DEFER}; or --engine cuda, which needs no TensorRT",
    )
    assert plugins is not None
    return Ready(plugins, module, gpu)


def check_finishing(*, ranks: int) -> tuple[Library, str]:
    """TensorRT and the GPU that finish a bundle, which brings its plugins along.

    Raises:
        UserError: one message that lists everything that is missing.
    """
    missing: list[str] = []
    module, gpu = check_machine(ranks, missing, None)
    _refuse(missing, "this machine cannot build the plans of the bundle", FINISH)
    assert module is not None
    return module, gpu


def check_machine(
    ranks: int, missing: list[str], architectures: tuple[int, ...] | None
) -> tuple[Library | None, str]:
    """TensorRT's module and the GPU's compute capability; what is not here is added to ``missing``. ``architectures``:
    that the plugin library has kernels for, None where that is not known."""
    module = _asked(missing, lambda: find_library(ENGINE))
    gpu = find_gpu()
    if gpu is None:
        missing.append(
            "no NVIDIA GPU (nvidia-smi finds none, or $CUDA_VISIBLE_DEVICES hides it): the builder times its kernels "
            "on the GPU that will run them"
        )
    elif gpu.capability not in SUPPORTED or not _has_kernels(gpu.capability, architectures):
        shown = f"compute capability {gpu.capability}" if gpu.capability else "an unknown compute capability"
        missing.append(f"{gpu.name} has {shown}: the plugins have kernels for {', '.join(SUPPORTED)}")
    if ranks > 1 and not find_nccl():
        missing.append(
            f"no {NCCL}, with which {ranks} ranks add up their parts: pip install nvidia-nccl-cu13, or a folder "
            "that has it in $LD_LIBRARY_PATH"
        )
    return module, gpu.capability if gpu else ""


def check_plugins(
    path: Path, graphs: Sequence[Path], module: Library | None = None, *, version: str = ""
) -> Checked:
    """Whether the plugin library at ``path`` takes the nodes of ``graphs`` (ONNX files of plans): fields, types and
    shapes by the plugin host, and, with ``module``, what TensorRT's own registry makes of them. Returns what there is
    in all of them together.

    ``version``: of the library that the graphs were made for; empty: any.

    Raises:
        UserError: no such library, one without what the graphs need, or one that TensorRT does not take.
    """
    try:
        answering: list[Creators] = [HostCreators(path)]
    except PluginError as error:
        raise UserError(str(error), where=str(path), remedy=plugins_remedy()) from None
    if version and answering[0].version != version:
        raise UserError(
            f"the plugin library has version {answering[0].version}, the graphs were made for {version}",
            where=str(path),
            remedy="take the library that the build put into the bundle, or build the bundle again",
        )
    if module is not None:
        answering.append(load_plugins(module.load(), path, version=version))
    checked = Checked(0, 0, {})
    for graph in graphs:
        try:
            nodes = plugin_nodes(graph.read_bytes())
        except NotAField as error:
            raise UserError(str(error), where=str(graph), remedy="a defect of mm2c: report it") from None
        for creators in answering:
            found = check_nodes(creators, nodes, str(graph))
        checked = checked.plus(found)
    return checked


def find_nccl() -> str:
    """What to load NCCL by: its name where the loader finds it, the path of the wheel's library, or nothing.

    TensorRT asks the loader for the name; a process that has loaded the library by any path has answered that.
    """
    for candidate in (NCCL, *_wheels()):
        try:
            ctypes.CDLL(candidate)
        except OSError:
            continue
        return candidate
    return ""


def _wheels() -> list[str]:
    try:
        spec = importlib.util.find_spec(WHEEL)
    except ModuleNotFoundError:
        return []
    places = spec.submodule_search_locations if spec else None
    return [str(Path(place) / "lib" / NCCL) for place in places or ()]


def lacking_creators(path: Path) -> list[str]:
    """Plugins of the dialect that the library at ``path`` has no creator for. Raises PluginError where it is none."""
    creators = HostCreators(path)
    needed = {spec.plugin for spec in ops.values() if spec.plugin is not None}
    return sorted(name for name in needed if creators.fields(name, NAMESPACE, CREATOR_VERSION) is None)


def plugins_remedy() -> str:
    return "`make plugins` in mm2c's folder builds the plugin library (needs no GPU)"


def _plugin_library() -> PluginLibrary:
    found = find_plugin_library()
    path = found.folder / NAMES[0]
    try:
        lacking = lacking_creators(path)
    except PluginError as error:
        raise UserError(str(error), where=str(path)) from None
    if lacking:
        raise UserError(f"the plugin library {found.version} has no {', '.join(lacking)}", where=str(path))
    return found


def _asked(missing: list[str], ask: Callable[[], Found]) -> Found | None:
    """The answer, or None and what is missing."""
    try:
        return ask()
    except UserError as error:
        missing.append(f"{error.what} ({error.where})" + (f": {error.remedy}" if error.remedy else ""))
        return None


def _has_kernels(capability: str, architectures: tuple[int, ...] | None) -> bool:
    """Kernels of a compute capability run on later ones of the same major number too."""
    if architectures is None:
        return True
    major, minor = (int(part) for part in capability.split("."))
    return any(sm // 10 == major and sm % 10 <= minor for sm in architectures)


def _refuse(missing: list[str], what: str, remedy: str) -> None:
    if missing:
        listed = "\n".join(f"  - {line}" for line in missing)
        raise UserError(f"{what}:\n{listed}", where=f"--engine {ENGINE}", remedy=remedy)
