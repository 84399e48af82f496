"""Finding the plugin library, and refusing what cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from stub_library import write_library

from mm2c.engine.plugin_library import find_library, library_folder
from mm2c.errors import UserError


def test_what_a_library_says_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM2C_PLUGINS", str(write_library(tmp_path / "lib")))
    found = find_library()
    assert found.folder == tmp_path / "lib"
    assert found.version == "0.1.0+0123456789ab"
    assert found.architectures == (80, 90)
    assert len(found.digest) == 64


def test_another_library_has_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for name in ("a", "b"):
        monkeypatch.setenv("MM2C_PLUGINS", str(write_library(tmp_path / name, version=f"0.1.0+{name}")))
        digests.add(find_library().digest)
    (tmp_path / "b" / "libmm2c_host.so").write_bytes(b"another host")
    digests.add(find_library().digest)
    assert len(digests) == 3


def test_without_a_variable_it_is_the_source_tree_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MM2C_PLUGINS", raising=False)
    assert library_folder().parts[-2:] == ("plugins", "build")


@pytest.mark.parametrize("missing", ["libmm2c_plugins.so", "libmm2c_host.so"])
def test_a_library_that_is_not_built_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    (write_library(tmp_path) / missing).unlink()
    monkeypatch.setenv("MM2C_PLUGINS", str(tmp_path))
    with pytest.raises(UserError, match=f"there is no {missing}") as refused:
        find_library()
    assert refused.value.where == str(tmp_path)
    assert "make plugins" in refused.value.remedy
    assert "--engine onnxruntime" in refused.value.remedy


def test_what_is_no_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM2C_PLUGINS", str(tmp_path))
    for name in ("libmm2c_plugins.so", "libmm2c_host.so"):
        (tmp_path / name).write_bytes(b"text")
    with pytest.raises(UserError, match="cannot be used") as refused:
        find_library()
    assert "make plugins" in refused.value.remedy


def test_another_interface_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM2C_PLUGINS", str(write_library(tmp_path, abi=7)))
    with pytest.raises(UserError, match="has interface 7, this mm2c needs 1"):
        find_library()


def test_a_library_without_kernels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM2C_PLUGINS", str(write_library(tmp_path, kernels=[])))
    with pytest.raises(UserError, match="without kernels"):
        find_library()
