"""The plugin library that a cuda bundle carries: where it is, what it is, and whether it can be used."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mm2c.errors import UserError

ABI = 1  # of the library's C interface
VARIABLE = "MM2C_PLUGINS"
REMEDY = "make plugins"
NAMES = ("libmm2c_plugins.so", "libmm2c_host.so")
LIBRARY, HOST = (f"plugins/{name}" for name in NAMES)  # in a bundle


@dataclass(frozen=True)
class PluginLibrary:
    """``folder`` has the files of NAMES. ``version``: the library's own; ``digest``: of both files and of the Python
    that reaches them; ``architectures``: compute capabilities it has kernels for, as 90 for 9.0."""

    folder: Path
    version: str
    digest: str
    architectures: tuple[int, ...]

    def note(self) -> str:
        """For the build's report: which machines the bundle is for."""
        shown = ", ".join(f"{sm // 10}.{sm % 10}" for sm in self.architectures)
        return f"plugin library {self.version}, kernels for compute capability {shown}"


def find_library() -> PluginLibrary:
    """The library in ``$MM2C_PLUGINS``, else in the source tree's plugins/build.

    Raises:
        UserError: it is not built, cannot be loaded, is of another interface, or has no kernels.
    """
    folder = library_folder()
    for name in NAMES:
        if not (folder / name).is_file():
            raise UserError(
                f"the plugin library of the cuda engine is not built: there is no {name}",
                where=str(folder),
                remedy=f"`{REMEDY}` in mm2c's folder (needs no GPU), or ${VARIABLE}=FOLDER that has it; "
                "--engine onnxruntime needs none",
            )
    path = folder / NAMES[0]
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.mm2c_plugins_version.restype = ctypes.c_char_p
        abi, version = int(loaded.mm2c_plugins_abi()), str(loaded.mm2c_plugins_version().decode())
        architectures = _architectures(loaded)
    except (OSError, AttributeError, ValueError) as error:
        raise UserError(
            f"the plugin library cannot be used: {error}",
            where=str(path),
            remedy=f"build it again: `{REMEDY}`",
        ) from None
    if abi != ABI:
        raise UserError(
            f"the plugin library has interface {abi}, this mm2c needs {ABI}",
            where=str(path),
            remedy=f"build it again: `{REMEDY}`",
        )
    if not architectures:
        raise UserError(
            "the plugin library was built without kernels",
            where=str(path),
            remedy=f"`{REMEDY}` in mm2c's folder",
        )
    return PluginLibrary(folder, version, _digest(folder), architectures)


def library_folder() -> Path:
    """Where the library is looked for; it need not be there."""
    if own := os.environ.get(VARIABLE):
        return Path(own).expanduser().absolute()
    return Path(str(resources.files("mm2c_plugins"))) / "build"


def _architectures(loaded: ctypes.CDLL) -> tuple[int, ...]:
    kernels = loaded.mm2c_plugins_kernels
    kernels.restype, kernels.argtypes = ctypes.c_size_t, [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
    text = ctypes.create_string_buffer(kernels(0, None, 0))
    kernels(0, text, len(text))
    return tuple(sorted({int(kernel["sm"]) for kernel in json.loads(text.value or b"[]")}))


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in NAMES:
        digest.update((folder / name).read_bytes())
    package = Path(str(resources.files("mm2c_plugins")))
    for path in [package / "__init__.py", *sorted((package / "host").rglob("*.py"))]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
