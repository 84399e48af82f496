"""A plugin library of a few lines, for what the compiler does with one: finds it, asks what it is, carries it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = """
#include <stddef.h>
#include <string.h>
int mm2c_plugins_abi(void) {{ return {abi}; }}
const char* mm2c_plugins_version(void) {{ return "{version}"; }}
size_t mm2c_plugins_kernels(int sm, char* json, size_t size) {{
    static const char text[] = "{kernels}";
    if (size) {{ strncpy(json, text, size); json[size - 1] = 0; }}
    return sizeof text;
}}
"""
KERNELS = [90, 80, 90]


def write_library(
    folder: Path, *, abi: int = 1, version: str = "0.1.0+0123456789ab", kernels: list[int] | None = None
) -> Path:
    """Compile one into ``folder`` and return it. Skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: the stub of the plugin library cannot be made")
    folder.mkdir(parents=True, exist_ok=True)
    table = [f'{{\\"sm\\": {sm}}}' for sm in (KERNELS if kernels is None else kernels)]
    source = folder / "stub.c"
    source.write_text(SOURCE.format(abi=abi, version=version, kernels=f"[{', '.join(table)}]"))
    target = folder / "libmm2c_plugins.so"
    target.unlink(missing_ok=True)  # another file: one that is loaded must not change
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(target), str(source)], check=True)
    (folder / "libmm2c_host.so").write_bytes(b"host " + version.encode())
    return folder
