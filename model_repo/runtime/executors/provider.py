"""ONNX Runtime's execution provider: which one is asked for, and whether this machine has what it takes."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

from mm2c_runtime.errors import BundleError

if TYPE_CHECKING:
    from mm2c_runtime.executors.cuda_driver import CudaDevice, Driver
    from mm2c_runtime.executors.device import Device

ProviderName = Literal["cpu", "cuda"]
PROVIDERS: tuple[ProviderName, ...] = ("cpu", "cuda")
LOWERINGS: dict[ProviderName, str] = {"cpu": "fast", "cuda": "portable"}  # what each runs where nobody says
VARIABLE = "MM2C_PROVIDER"
CUDA, CPU = "CUDAExecutionProvider", ("CPUExecutionProvider",)
log = logging.getLogger("mm2c.engine")
_INSTALL = (
    "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'mm2c[gpu]', or `pip install '.[gpu]'` in mm2c's "
    "folder"
)
_OPTIONS = {
    "use_tf32": "0",  # matrix products in f32, as on the CPU
    "arena_extend_strategy": "kSameAsRequested",  # not the next power of two
    "do_copy_in_default_stream": "1",  # the other way is known to race
    "use_ep_level_unified_stream": "1",  # one stream, and one set of handles, a session
}
# Each session has a cuBLAS handle of its own, and a rank three sessions a layer: what cuBLAS sets aside for one on
# Hopper and newer, 32 MiB, would take GiB. This is what it takes on older GPUs.
_CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:2:16:8")


def asked_provider(
    asked: str | None, *, engine: str = "onnxruntime", environment: Mapping[str, str] = os.environ
) -> ProviderName:
    """``asked``, else ``$MM2C_PROVIDER``, else "cpu"; the variable is for bundles of the engine onnxruntime alone.

    Raises BundleError for another word, and where a bundle of another engine is to have a provider.
    """
    if engine != "onnxruntime":
        if asked is None:
            return "cpu"
        raise BundleError(
            f"the bundle is for the engine {engine}, which has no execution providers",
            where=f"provider {asked}",
            remedy="leave the provider out; it is for bundles built with `--engine onnxruntime`",
        )
    word = asked or environment.get(VARIABLE) or "cpu"
    for provider in PROVIDERS:
        if word == provider:
            return provider
    raise BundleError(
        f"{word!r} is no execution provider, which are {' and '.join(PROVIDERS)}",
        where="provider" if asked else f"environment variable {VARIABLE}",
        remedy="leave it out to run on the CPU",
    )


def provider_lowering(provider: ProviderName, asked: str | None) -> str:
    """The lowering that runs: ``asked``, else the provider's own. Raises BundleError where that cannot run there."""
    if asked is not None and provider == "cuda" and asked != LOWERINGS[provider]:
        raise BundleError(
            f"the lowering {asked!r} is made of ONNX Runtime's operators for the CPU, and does not run on cuda",
            where="lowering",
            remedy=f"leave the lowering out: on cuda it is {LOWERINGS[provider]!r}",
        )
    return asked or LOWERINGS[provider]


def session_providers(device: Device) -> list[Any]:
    """For a session on one device. What has no kernel for CUDA, such as arithmetic with shapes, runs on the CPU."""
    if device.kind != "cuda":
        return list(CPU)
    return [(CUDA, {"device_id": str(device.number), **_OPTIONS}), *CPU]


def open_devices(ranks: int) -> list[CudaDevice]:
    """A GPU for each rank, in the order in which they are visible. Raises BundleError as ``check_machine``, and where
    CUDA's libraries are missing. Nothing is allocated yet."""
    import onnxruntime

    from mm2c_runtime.executors.cuda_driver import CudaDevice

    driver = check_machine(ranks)
    onnxruntime.set_default_logger_severity(3)  # it warns of every session that its provider is no plugin
    os.environ.setdefault(*_CUBLAS_WORKSPACE)
    _load_libraries()
    devices: list[CudaDevice] = []
    try:
        for number in range(ranks):
            devices.append(CudaDevice(driver, number))
            share_arena(number)
    except BaseException:
        for device in devices:
            device.close()
        raise
    return devices


def check_machine(ranks: int) -> Driver:
    """Raises BundleError where the installed ONNX Runtime has no CUDA provider or two ONNX Runtimes are installed over
    each other, the driver is missing or too old for it, or fewer GPUs are visible than there are ranks."""
    from mm2c_runtime.executors.cuda_driver import Driver

    check_package()
    driver = Driver()
    _check_driver(driver)
    if driver.count < ranks:
        raise BundleError(
            f"{ranks} ranks need a GPU each, and {driver.count} "
            f"{'is' if driver.count == 1 else 'are'} visible to this process",
            where="CUDA_VISIBLE_DEVICES, nvidia-smi",
            remedy="make more GPUs visible, or build for fewer ranks (--tp, --ep, --dp)",
        )
    return driver


def check_package() -> None:
    """Raises BundleError where not exactly one ONNX Runtime is installed, with the CUDA provider in it."""
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    if len(installed) == 2:
        raise BundleError(
            f"onnxruntime {_version(installed[0])} and onnxruntime-gpu {_version(installed[1])} are both installed: "
            "they have the same files, and those of the one that came last are there",
            where="the Python environment of the engine",
            remedy=_INSTALL,
        )
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        return
    name = installed[0] if installed else "ONNX Runtime"
    raise BundleError(
        f"{name} {onnxruntime.__version__} has no {CUDA}, it has "
        f"{', '.join(onnxruntime.get_available_providers())}",
        where=str(onnxruntime.__file__),
        remedy=_INSTALL,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _check_driver(driver: Driver) -> None:
    """CUDA's minor versions are compatible with each other, its major ones only upwards."""
    import onnxruntime

    built = str(getattr(onnxruntime, "cuda_version", "") or "")
    major = built.partition(".")[0]
    if major.isdigit() and driver.version[0] < int(major):
        raise BundleError(
            f"onnxruntime-gpu {onnxruntime.__version__} is built for CUDA {built}, and this machine's driver is for "
            f"CUDA {driver.version[0]}.{driver.version[1]}",
            where=driver.name(0),
            remedy=f"install a driver for CUDA {major} or newer",
        )


def _load_libraries() -> None:
    """CUDA's libraries out of the packages that pip brought them in, where there are any: the provider's library
    finds by itself only what the system knows."""
    import onnxruntime

    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is None:
        return
    said = io.StringIO()
    with redirect_stdout(said):  # what is not there may be the system's, which the provider itself will find
        preload()
    for line in said.getvalue().splitlines():
        log.debug("%s", line)


def share_arena(number: int) -> None:
    """One arena a GPU for the steps of all sessions there: each of its own would keep what its largest step needed,
    and a rank has several sessions a layer. Where ONNX Runtime cannot make it here, no session could."""
    import onnxruntime as ort

    if number in _SHARED:
        return
    memory = ort.OrtMemoryInfo(
        "Cuda", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, number, ort.OrtMemType.DEFAULT
    )
    arena = ort.OrtArenaCfg({"arena_extend_strategy": 1})  # as much as asked for
    try:
        ort.create_and_register_allocator_v2(CUDA, memory, {"device_id": str(number)}, arena)
    except Exception as error:
        reason = str(error).strip().splitlines()[0].rpartition("() ")[2]  # without the place in its source
        raise BundleError(
            f"ONNX Runtime {ort.__version__} cannot use cuda:{number}: {reason}",
            where=str(ort.__file__),
            remedy="the log names the library that is missing: pip install 'mm2c[gpu]' brings all of them",
        ) from error
    _SHARED.add(number)


_SHARED: set[int] = set()  # GPUs whose arena this process has
