"""Where a bundle may go: never over anything that is not a bundle, however much force is asked for."""

from __future__ import annotations

from pathlib import Path

from mm2c.errors import UserError


def check_place(output: Path, checkpoint: Path, *, force: bool) -> None:
    """Refuse an output whose replacement would lose what is no bundle.

    An empty folder and a bundle (a folder with our manifest.json) may be replaced; whether a bundle needs
    ``force`` is decided by its build key, later.

    Raises:
        UserError: the output is or holds the checkpoint, the current or the home folder; is a file, a link,
            or a folder with other things in it.
    """
    place = output.resolve()
    for name, folder in (("checkpoint's", checkpoint), ("current", Path.cwd()), ("home", Path.home())):
        kept = folder.resolve()
        if place == kept or place in kept.parents:
            raise UserError(
                f"the output is the {name} folder, or one that holds it",
                where=str(output),
                remedy="choose a folder of its own with -o",
            )
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir() or output.is_symlink():
        raise UserError(
            "a file or a link stands at the output",
            where=str(output),
            remedy="choose another -o, or remove it yourself",
        )
    if not is_bundle(output) and _holds_something(output):
        hint = "; --force replaces bundles only" if force else ""
        raise UserError(
            f"the output is a folder with other things in it{hint}",
            where=str(output),
            remedy="choose another -o, or remove it yourself",
        )


def is_bundle(folder: Path) -> bool:
    """Whether ``folder`` was written by a build, of any version and in any state: it has our manifest."""
    path = folder / "manifest.json"
    try:
        return path.is_file() and '"mm2c_version"' in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _holds_something(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return True
