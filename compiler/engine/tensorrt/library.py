"""The Python module that a TensorRT engine needs: which one, its version, and what to do where it is missing."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mm2c.errors import UserError

TensorRTEngine = Literal["tensorrt-rtx", "tensorrt"]
MODULES: dict[str, str] = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
EXTRAS: dict[str, str] = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}
NAMES: dict[str, str] = {"tensorrt-rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
# Versions from, and below which, the layers of the graphs exist and keep their meaning.
VERSIONS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "tensorrt-rtx": ((1, 7), (2, 0)),
    "tensorrt": ((11, 0), (12, 0)),
}


@dataclass(frozen=True)
class Library:
    """``module`` is what Python imports; ``version`` what it says of itself, as "1.7.1.116"."""

    engine: TensorRTEngine
    module: str
    version: str

    @property
    def name(self) -> str:
        """With the version, for messages."""
        return f"{NAMES[self.engine]} {self.version}"

    def load(self) -> Any:
        """The module."""
        return importlib.import_module(self.module)


def find_library(engine: str) -> Library:
    """The library of ``engine`` ("tensorrt-rtx" or "tensorrt") in this environment.

    Raises:
        UserError: it is not installed, cannot be loaded, or is of a version whose plans would be another matter.
        ValueError: an engine that is none of TensorRT's.
    """
    module = MODULES[_engine(engine)]
    where = "the Python environment of mm2c"
    install = f"pip install '.[{EXTRAS[engine]}]' in mm2c's folder"
    try:
        loaded = importlib.import_module(module)
        version = str(loaded.__version__)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise UserError(
                f"{NAMES[engine]} is installed in part: its module {module} needs {error.name}",
                where=where,
                remedy=install,
            ) from None
        raise UserError(
            f"{NAMES[engine]} is not installed: there is no module {module}", where=where, remedy=install
        ) from None
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{NAMES[engine]} is installed but cannot be loaded: {error}",
            where=f"module {module}",
            remedy=f"{install}; its shared libraries must be of the same version and where the loader finds them",
        ) from None
    _check_version(engine, version, install)
    return Library(_engine(engine), module, version)


def _engine(engine: str) -> TensorRTEngine:
    for known in get_args(TensorRTEngine):
        if engine == known:
            found: TensorRTEngine = known
            return found
    raise ValueError(f"{engine} is no engine of TensorRT")


def _check_version(engine: str, version: str, install: str) -> None:
    first, end = VERSIONS[engine]
    try:
        found = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        found = ()
    if not first <= found < end:
        raise UserError(
            f"{NAMES[engine]} {version or '(without a version)'} is here; this mm2c is written for "
            f"{first[0]}.{first[1]} and later ones before {end[0]}",
            where=f"module {MODULES[engine]}",
            remedy=install,
        )
