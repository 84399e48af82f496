"""What a child process of this package is started with: its interpreter, environment and working folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_FOLDERS = ("MM2C_CACHE", "XDG_CACHE_HOME", "TMPDIR")  # that the engine reads from its environment


def python() -> str:
    """This interpreter. Embedded in another program (Triton's stub) ``sys.executable`` may name that one,
    or none."""
    if Path(sys.executable or "").name.startswith("python"):
        return sys.executable
    return str(Path(sys.prefix) / "bin" / "python3")


def absolute_folders(environment: Mapping[str, str]) -> dict[str, str]:
    """The folders that ``environment`` names for the engine, absolute: for a child that runs in another one."""
    found = {name: os.path.abspath(environment[name]) for name in _FOLDERS if environment.get(name)}
    if "PYTHONPATH" in environment:
        paths = environment["PYTHONPATH"].split(os.pathsep)
        found["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths if path)
    return found


def child_environment() -> tuple[dict[str, str], Path]:
    """Environment and working folder of a child: it must find this very package, wherever its parent found it,
    and every folder that is named relative to the parent's. It does not run in its parent's folder: Python
    imports from the working folder, where anything may lie."""
    changed = absolute_folders(os.environ)
    found = _package()
    if found.name == "mm2c_runtime":  # else an editable install maps the name to it, also in the child
        paths = [str(found.parent), *filter(None, [changed.get("PYTHONPATH")])]
        changed["PYTHONPATH"] = os.pathsep.join(paths)
    return {**os.environ, **changed}, found.parent


def _package() -> Path:
    import mm2c_runtime

    return Path(mm2c_runtime.__file__).resolve().parent
