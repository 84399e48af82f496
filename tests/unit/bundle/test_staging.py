from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mm2c.bundle.staging import check_output, staged, sweep
from mm2c.errors import UserError


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
