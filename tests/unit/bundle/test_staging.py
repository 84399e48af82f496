from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mm2c.bundle.staging import check_output, staged, sweep
from mm2c.errors import UserError
from mm2c.weights.journal import JOURNAL, Build, Journal


def test_the_output_appears_when_the_block_ends(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with staged(output) as stage:
        (stage / "a").write_text("1")
        assert not output.exists()
    assert (output / "a").read_text() == "1"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("error", [RuntimeError("defect"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_output_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "old").write_text("kept")

    def build() -> None:
        with staged(output) as stage:
            (stage / "new").write_text("lost")
            raise error

    with pytest.raises(type(error)):
        build()
    assert [p.name for p in output.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [output]


def test_an_old_output_is_replaced_whole(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "old").write_text("")
    with staged(output) as stage:
        (stage / "new").write_text("")
    assert [p.name for p in output.iterdir()] == ["new"]


def test_a_full_disk_is_a_user_error(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with pytest.raises(UserError, match="disk is full"), staged(output):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    old = tmp_path / ".m2[v1].old-999999999"
    old.mkdir()
    (old / "kept").write_text("")
    assert sweep(tmp_path / "m2[v1]") == [old]
    assert (tmp_path / "m2[v1]" / "kept").exists()


def test_remains_of_killed_builds_are_swept_and_live_ones_are_not(tmp_path: Path) -> None:
    dead = tmp_path / ".bundle.building-999999999"
    live = tmp_path / f".bundle.building-{os.getppid()}"
    dead.mkdir()
    live.mkdir()
    assert sweep(tmp_path / "bundle") == [dead]
    assert live.exists()


def test_a_file_in_the_way_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be"):
        check_output(tmp_path / "file" / "bundle")


def test_ctrl_c_between_the_renames_brings_the_old_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "old").write_text("kept")
    real, calls = os.rename, []

    def rename(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt), staged(output) as stage:
        (stage / "new").write_text("")
    assert (output / "old").read_text() == "kept"
    assert list(tmp_path.iterdir()) == [output]


def test_an_old_bundle_that_a_killed_build_moved_aside_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / ".bundle.old-999999999"
    aside.mkdir()
    (aside / "old").write_text("kept")
    sweep(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "old").read_text() == "kept"
    aside.mkdir()  # the new bundle took its place before the kill
    sweep(tmp_path / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "a bundle"])
@pytest.mark.parametrize("appears", ["a file", "a folder", "another bundle"])
def test_what_appears_at_the_output_meanwhile_is_never_replaced(
    tmp_path: Path, before: str, appears: str
) -> None:
    output = tmp_path / "bundle"
    if before != "nothing":
        output.mkdir()
    if before == "a bundle":
        (output / "manifest.json").write_text("old")

    def build() -> None:
        with staged(output) as stage:
            (stage / "manifest.json").write_text("ours")
            if output.exists():
                output.rename(tmp_path / "away")
            if appears == "a file":
                output.write_text("theirs")
            else:
                output.mkdir()
                name = "thesis.txt" if appears == "a folder" else "manifest.json"
                (output / name).write_text("theirs")

    with pytest.raises(UserError, match="while this build ran"):
        build()
    theirs = output if appears == "a file" else next(output.iterdir())
    assert theirs.read_text() == "theirs"
    assert {p.name for p in tmp_path.iterdir()} <= {"bundle", "away"}


def left_by_a_killed_build(folder: Path, key: str) -> Path:
    """A stage with graphs, a weights file and a journal of ``key``."""
    (folder / "rank0").mkdir(parents=True)
    (folder / "rank0" / "weights.safetensors").write_bytes(b"data")
    (folder / "rank0" / "model.onnx").write_text("old graph")
    Journal(folder / JOURNAL, Build(key, (("rank0/weights.safetensors", 4),), 8, {})).close()
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("own", [False, True])  # containers give every build the same pid
def test_a_stage_with_a_journal_of_the_same_key_is_adopted(tmp_path: Path, own: bool) -> None:
    pid = os.getpid() if own else 999999999
    left = left_by_a_killed_build(tmp_path / f".bundle.building-{pid}", "k")
    (tmp_path / ".bundle.building-999999998").mkdir()
    output = tmp_path / "bundle"
    assert sweep(output, spare=True) == [tmp_path / ".bundle.building-999999998"]
    check_output(output)
    node = (left / "rank0" / "weights.safetensors").stat().st_ino
    with staged(output, "k") as stage:
        assert files_in(stage) == [JOURNAL, "rank0/weights.safetensors"]
        assert stage.name == f".bundle.building-{os.getpid()}"
    assert files_in(output) == ["rank0/weights.safetensors"]
    assert (output / "rank0" / "weights.safetensors").stat().st_ino == node
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("key", ["other", ""])
def test_a_stage_of_another_key_is_swept_and_not_adopted(tmp_path: Path, key: str) -> None:
    left = left_by_a_killed_build(tmp_path / ".bundle.building-999999999", "k")
    with staged(tmp_path / "bundle", key) as stage:
        assert not left.exists()
        assert files_in(stage) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "bundle"]


def test_a_live_builds_stage_is_never_adopted(tmp_path: Path) -> None:
    live = left_by_a_killed_build(tmp_path / f".bundle.building-{os.getppid()}", "k")
    with staged(tmp_path / "bundle", "k") as stage:
        assert files_in(stage) == []
    assert files_in(live)


def test_an_adopted_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    left_by_a_killed_build(tmp_path / ".bundle.building-999999999", "k")
    with pytest.raises(RuntimeError), staged(tmp_path / "bundle", "k"):
        raise RuntimeError("defect")
    assert list(tmp_path.iterdir()) == []


def test_a_stage_with_a_damaged_journal_is_swept(tmp_path: Path) -> None:
    left = left_by_a_killed_build(tmp_path / ".bundle.building-999999999", "k")
    (left / JOURNAL).write_text("no journal")
    assert sweep(tmp_path / "bundle", spare=True) == [left]
    assert list(tmp_path.iterdir()) == []
