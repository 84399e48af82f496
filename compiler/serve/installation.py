"""Finding tritonserver and the Python stub that fits this interpreter."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mm2c.errors import UserError

VARIABLE = "MM2C_TRITON"
CONTAINER = Path("/opt/tritonserver")
INSTALL = (
    "pip install '.[cpu,serve]' in the folder of mm2c's sources, or name one: --triton PATH, or $MM2C_TRITON"
)
WHEEL_GLIBC = (2, 35)


@dataclass(frozen=True)
class Installation:
    """``root`` holds ``bin/tritonserver`` and ``backends/python``. ``stub``: the Python stub to run.

    ``libraries``: folders that tritonserver needs on LD_LIBRARY_PATH; empty where the system finds its own.
    """

    root: Path
    stub: Path
    libraries: tuple[Path, ...]
    source: str

    @property
    def binary(self) -> Path:
        return self.root / "bin" / "tritonserver"

    @property
    def python_backend(self) -> Path:
        return self.root / "backends" / "python"


def find_triton(path: Path | None = None) -> Installation:
    """``path`` (the binary or its installation), $MM2C_TRITON, the nvidia-pytriton wheel, /opt/tritonserver.

    Raises UserError when there is none, or when what was named is none.
    """
    if path is not None:
        return _installation(_root_of(path, "--triton"), f"--triton {path}")
    named = os.environ.get(VARIABLE)
    if named:
        return _installation(_root_of(Path(named), f"${VARIABLE}"), f"${VARIABLE}")
    wheel = wheel_root()
    if wheel is not None:
        _check_wheel()
        return _installation(wheel, "the nvidia-pytriton wheel")
    if (CONTAINER / "bin" / "tritonserver").is_file():
        return _installation(CONTAINER, str(CONTAINER))
    raise UserError(
        "no tritonserver was found",
        where=f"${VARIABLE}, the nvidia-pytriton wheel of {sys.prefix}, {CONTAINER}",
        remedy=INSTALL,
    )


def wheel_root() -> Path | None:
    """``pytriton/tritonserver`` of this environment, found without importing pytriton."""
    spec = importlib.util.find_spec("pytriton")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        root = Path(folder) / "tritonserver"
        if (root / "bin" / "tritonserver").is_file():
            return root
    return None


def libpython_folder() -> Path | None:
    """Where ``libpython3.x.so`` lies, which the stub needs; None where no folder of Python has it."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so*"
    libdir = Path(sysconfig.get_config_var("LIBDIR") or "/nowhere")
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    for folder in (libdir, Path(sys.base_prefix) / "lib", libdir / multiarch):
        if any(folder.glob(name)):
            return folder
    return None


def _root_of(path: Path, given: str) -> Path:
    for root in (path, path.parent.parent):
        if (root / "bin" / "tritonserver").is_file() and (root / "backends" / "python").is_dir():
            return root.resolve()
    raise UserError(
        "this is no tritonserver installation with a Python backend",
        where=f"{given}: {path}",
        remedy="name the binary, or the folder that holds bin/tritonserver and backends/python",
    )


def _installation(root: Path, source: str) -> Installation:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stubs = root / "python_backend_stubs"
    beside = root / "backends" / "python" / "triton_python_backend_stub"
    stub = stubs / version / "triton_python_backend_stub"
    if not stub.is_file():
        if not beside.is_file():
            have = ", ".join(sorted(p.name for p in stubs.glob("3.*"))) or "none"
            raise UserError(
                f"this Triton has no Python stub for Python {version} (it has: {have})",
                where=str(root),
                remedy="run mm2c in one of those Python versions, or name another Triton: --triton PATH",
            )
        stub = beside
    libraries = [root.parents[1] / "nvidia_pytriton.libs", libpython_folder()]
    return Installation(root, stub, tuple(p for p in libraries if p is not None and p.is_dir()), source)


def _check_wheel() -> None:
    """What the wheel's server needs of this machine and environment; its own failures would be riddles."""
    libc, number = platform.libc_ver()
    if libc == "glibc" and tuple(int(n) for n in number.split(".")[:2]) < WHEEL_GLIBC:
        raise UserError(
            f"the embedded Triton needs glibc 2.35 or newer, this system has {number}",
            remedy="use a newer Linux, or a Triton built for this one: --triton PATH, or $MM2C_TRITON",
        )
    if int(metadata.version("numpy").split(".")[0]) >= 2:
        raise UserError(
            "the embedded Triton's Python backend dies on text tensors with numpy 2",
            where=sys.prefix,
            remedy=f"{sys.executable} -m pip install 'numpy<2'",
        )
