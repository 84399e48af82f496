from __future__ import annotations

import os
from pathlib import Path

import pytest
from toy_bundle import write_toy_bundle

from mm2c.bundle.checksums import entries
from mm2c.errors import UserError
from mm2c.verify import bundle_report
from mm2c.verify.bundle_report import add_reports, check_writable
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.manifest_file import read_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    manifest = write_toy_bundle(folder)
    sealed = manifest.model_copy(update={"files": entries(folder, {})}).sealed()
    (folder / "manifest.json").write_text(sealed.model_dump_json(), "utf-8")
    return folder


def content(bundle: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p.relative_to(bundle)): (p.read_bytes(), p.stat().st_ino)
        for p in bundle.rglob("*")
        if p.is_file()
    }


def test_a_report_is_named_and_the_bundle_stays_valid(bundle: Path) -> None:
    before = read_bundle(bundle)
    assert add_reports(bundle, {"report/a.bin": b"abc", "report/b.bin": b"x" * (9 << 20)})
    after = read_bundle(bundle)
    assert after.build_key == before.build_key
    assert set(after.files) - set(before.files) == {"report/a.bin", "report/b.bin"}
    assert after.is_intact()
    assert after.files["report/b.bin"] == entries(bundle, {})["report/b.bin"]  # as a build would


def test_twice_is_once(bundle: Path) -> None:
    assert add_reports(bundle, {"report/a.bin": b"abc"})
    first = content(bundle)
    assert not add_reports(bundle, {"report/a.bin": b"abc"})
    assert content(bundle) == first


def test_another_report_takes_its_place(bundle: Path) -> None:
    add_reports(bundle, {"report/a.bin": b"abc"})
    assert add_reports(bundle, {"report/a.bin": b"abcd"})
    assert (bundle / "report/a.bin").read_bytes() == b"abcd"
    read_bundle(bundle)
    assert [p.name for p in (bundle / "report").iterdir()] == ["a.bin"]


def test_a_damaged_report_is_written_again(bundle: Path) -> None:
    add_reports(bundle, {"report/a.bin": b"abc"})
    (bundle / "report/a.bin").write_bytes(b"abd")
    with pytest.raises(BundleError, match="altered"):
        read_bundle(bundle)
    assert add_reports(bundle, {"report/a.bin": b"abc"})
    read_bundle(bundle)


@pytest.mark.parametrize("survived", range(3))
def test_the_bundle_is_valid_wherever_the_writing_ends(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    add_reports(bundle, {"report/a.bin": b"abc"})
    done = 0

    def replace(source: str, target: Path) -> None:
        nonlocal done
        if done == survived:
            raise OSError(28, "No space left on device")
        done += 1
        os.rename(source, target)

    monkeypatch.setattr(bundle_report.os, "replace", replace)
    with pytest.raises(UserError, match="No space left"):
        add_reports(bundle, {"report/a.bin": b"other"})
    monkeypatch.undo()
    read_bundle(bundle)
    assert add_reports(bundle, {"report/a.bin": b"other"})
    assert "report/a.bin" in read_bundle(bundle).files


def test_a_bundle_that_cannot_be_written_is_said_before(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(bundle)

    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(bundle_report.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match="Read-only file system") as caught:
        check_writable(bundle)
    assert "--no-write" in str(caught.value)
    assert isinstance(read_bundle(bundle), Manifest)
