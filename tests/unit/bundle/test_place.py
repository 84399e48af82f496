"""What --force may replace, and what it never may."""

from __future__ import annotations

from pathlib import Path

import pytest

from mm2c.bundle.place import check_place, is_bundle
from mm2c.errors import UserError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "m2"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("place", ["models/m2", "models", "."])
def test_the_checkpoint_is_never_overwritten(
    tmp_path: Path, checkpoint: Path, place: str, force: bool
) -> None:
    with pytest.raises(UserError, match="checkpoint's folder"):
        check_place(tmp_path / place, checkpoint, force=force)


def test_a_link_to_the_checkpoint_counts_as_the_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "link").symlink_to(checkpoint)
    with pytest.raises(UserError, match="checkpoint's folder"):
        check_place(tmp_path / "link", checkpoint, force=True)


@pytest.mark.parametrize("place", ["work/here", "work"])
def test_the_current_folder_and_what_holds_it_are_refused(
    tmp_path: Path, checkpoint: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "here")
    with pytest.raises(UserError, match="current folder"):
        check_place(tmp_path / place, checkpoint, force=True)


def test_the_home_folder_is_refused(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(UserError, match="home folder"):
        check_place(tmp_path / "home", checkpoint, force=True)


def test_force_does_not_replace_a_folder_of_other_things(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "thesis" / "manifest.json").write_text("{}")  # many tools call a file that
    with pytest.raises(UserError, match="other things in it; --force replaces bundles only"):
        check_place(tmp_path / "thesis", checkpoint, force=True)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_or_a_link_is_refused(tmp_path: Path, checkpoint: Path, kind: str) -> None:
    (tmp_path / "target").mkdir()
    if kind == "file":
        (tmp_path / "out").write_text("")
    else:
        (tmp_path / "out").symlink_to(tmp_path / "target")
    with pytest.raises(UserError, match="a file or a link"):
        check_place(tmp_path / "out", checkpoint, force=True)


def test_nothing_an_empty_folder_and_a_bundle_may_be_built_at(tmp_path: Path, checkpoint: Path) -> None:
    check_place(tmp_path / "new" / "deep", checkpoint, force=False)
    check_place(checkpoint / "m2-tp4", checkpoint, force=False)
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty", checkpoint, force=False)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text('{"format": 2, "mm2c_version": "0.1", trunca')
    assert is_bundle(tmp_path / "bundle")
    check_place(tmp_path / "bundle", checkpoint, force=True)
