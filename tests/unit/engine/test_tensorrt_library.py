"""Whether an engine's Python module is there and of a version that plans can be built with."""

from __future__ import annotations

import types
from typing import Any

import pytest

from mm2c.engine.tensorrt import library
from mm2c.engine.tensorrt.library import Library, find_library
from mm2c.errors import UserError


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(found: Any) -> None:
        def load(name: str) -> Any:
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(library.importlib, "import_module", load)

    return put


@pytest.mark.parametrize(
    ("engine", "version", "shown"),
    [
        ("tensorrt-rtx", "1.7.1.116", "TensorRT-RTX 1.7.1.116"),
        ("tensorrt", "11.4.0.106", "TensorRT 11.4.0.106"),
    ],
)
def test_what_is_there(module: Any, engine: str, version: str, shown: str) -> None:
    module(types.SimpleNamespace(__version__=version))
    found = find_library(engine)
    assert (found.engine, found.version, found.name) == (engine, version, shown)
    assert found == Library(found.engine, engine.replace("-", "_"), version)


@pytest.mark.parametrize(
    ("engine", "found", "what", "extra"),
    [
        ("tensorrt-rtx", ModuleNotFoundError(name="tensorrt_rtx"), "TensorRT-RTX is not installed", "rtx"),
        ("tensorrt", ModuleNotFoundError(name="tensorrt"), "TensorRT is not installed", "tensorrt"),
        ("tensorrt", ModuleNotFoundError(name="tensorrt_libs"), "installed in part", "tensorrt"),
        ("tensorrt", ImportError("libnvinfer.so.11"), "cannot be loaded: libnvinfer.so.11", "tensorrt"),
        ("tensorrt-rtx", types.SimpleNamespace(__version__="1.6.0"), "TensorRT-RTX 1.6.0 is here", "rtx"),
        ("tensorrt-rtx", types.SimpleNamespace(__version__="2.0.1"), "before 2", "rtx"),
        ("tensorrt", types.SimpleNamespace(__version__="10.16.1"), "TensorRT 10.16.1 is here", "tensorrt"),
        ("tensorrt", types.SimpleNamespace(__version__="built"), "TensorRT built is here", "tensorrt"),
        ("tensorrt", types.SimpleNamespace(), "cannot be loaded", "tensorrt"),
    ],
)
def test_what_cannot_be_used(module: Any, engine: str, found: Any, what: str, extra: str) -> None:
    module(found)
    with pytest.raises(UserError) as refused:
        find_library(engine)
    assert what in refused.value.what
    assert f"pip install '.[{extra}]'" in refused.value.remedy


def test_other_engines_have_none() -> None:
    with pytest.raises(ValueError, match="no engine of TensorRT"):
        find_library("cuda")
