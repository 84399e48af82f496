"""The library that plans run on, and the plugin library that they need: missing, of another release, or broken."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tensorrt_double import GlooCommunicator, Registry, Severity, double, module
from toy_plans import write_bundle

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.tensorrt import TensorRTExecutor
from mm2c_runtime.executors.tensorrt import plugins as tensorrt_plugins
from mm2c_runtime.executors.tensorrt.library import Library, open_library
from mm2c_runtime.manifest import Manifest

PLUGINS = {
    "library": "plugins/lib.so",
    "host": "plugins/host.so",
    "version": "1",
    "abi": 1,
    "creators": ["M2A", "M2B"],
}


def refusal(folder: Path, manifest: Manifest, library: Library) -> BundleError:
    with pytest.raises(BundleError) as caught:
        TensorRTExecutor(folder, manifest, device="cpu", library=library)
    assert caught.value.remedy
    assert caught.value.where
    return caught.value


def with_plugins(manifest: Manifest, **changes: Any) -> Manifest:
    raw = manifest.model_dump(mode="json")
    raw["tensorrt"]["plugins"] = {**PLUGINS, **changes}
    return Manifest.model_validate(raw)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BundleError) as caught:
        open_library("tensorrt-rtx", "1.7.1")
    assert "tensorrt_rtx 1.7.1, which cannot be imported" in caught.value.what
    assert "mm2c[rtx]" in caught.value.remedy


def test_the_installed_library_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", module())
    assert open_library("tensorrt", "0.double").version == "0.double"
    with pytest.raises(BundleError, match=r"built with tensorrt_double 11.4, 0.double is installed"):
        open_library("tensorrt", "11.4")


def plugin_library(creators: list[str]) -> tuple[Library, Registry]:
    made = module(rtx=False, creators=creators)
    return Library(
        made, lambda collectives, device: GlooCommunicator(collectives)
    ), made.get_plugin_registry()


def test_plugin_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_plugins, "_REGISTERED", {})
    manifest = with_plugins(write_bundle(tmp_path, paged=True))
    library, registry = plugin_library(["M2A"])
    assert "plugin library is missing" in refusal(tmp_path, manifest, library).what
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/lib.so").write_bytes(b"")
    error = refusal(tmp_path, manifest, library)
    assert "no creator M2B in the namespace mm2c" in error.what
    assert registry.loaded == [str(tmp_path / "plugins/lib.so")]
    monkeypatch.setattr(registry, "load_library", lambda plugin_path: None)
    registry.loaded.clear()
    assert "cannot load the plugin library" in refusal(tmp_path, manifest, library).what
    library, registry = plugin_library(["M2A", "M2B"])
    for _ in range(2):  # the second time they are there
        TensorRTExecutor(tmp_path, manifest, device="cpu", library=library).close()
    assert len(registry.loaded) == 1
    newer = with_plugins(manifest, version="2")
    error = refusal(tmp_path, newer, library)
    assert error.what == "this process has registered the plugin library 1, the plans need 2"


def test_a_library_that_cannot_start(tmp_path: Path) -> None:
    """TensorRT 11 makes a runtime all the same, and the process ends when it is used."""
    library = double()

    class Broken:
        def __init__(self, logger: Any) -> None:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")

    library.module.Runtime = Broken
    error = refusal(tmp_path, write_bundle(tmp_path), library)
    assert error.what == "tensorrt_double 0.double cannot start: CUDA initialization failure with error: 35"
