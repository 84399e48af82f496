"""All or nothing: a bundle is written into a temporary sibling and renamed when it is whole.

What a killed build leaves there with a journal of its weights is taken up by the next build of the same content.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mm2c.errors import UserError
from mm2c.weights.journal import JOURNAL, journal_key

WEIGHTS_SUFFIX = ".safetensors"  # of the files that a journal is about


def _beside(output: Path, kind: str) -> Path:
    """This process's ``building`` or ``old`` folder of ``output``; ``sweep`` knows the name again."""
    return output.parent / f".{output.name}.{kind}-{os.getpid()}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _dead(output: Path, kinds: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Folders of ``output`` that builds left which are no more; this process's own pid counts, where an earlier one
    had it (in containers all have the same)."""
    found = []
    for path in sorted(output.parent.glob(f".{glob.escape(output.name)}.*-*")):
        kind, _, pid = path.name.removeprefix(f".{output.name}.").rpartition("-")
        if kind in kinds and pid.isdigit() and (int(pid) == os.getpid() or not _alive(int(pid))):
            found.append((kind, path))
    return found


def sweep(output: Path, *, spare: bool = False) -> list[Path]:
    """Clear what killed builds of this output left behind (``kill -9`` leaves no chance to clean up).

    A half-written stage goes; with ``spare`` not one with a journal of its weights, for ``staged`` may go on with
    it. An old bundle that was moved aside comes back where no new one took its place, and goes
    otherwise.
    """
    cleared = []
    for kind, path in _dead(output, ("building", "old", "probe")):
        if kind == "building" and spare and journal_key(path) is not None:
            continue
        if kind == "old" and not output.exists():
            os.replace(path, output)
        else:
            _remove(path)
        cleared.append(path)
    return cleared


def check_output(output: Path) -> None:
    """Refuse an output that cannot be written, before any work.

    Raises UserError where the parent is missing, no folder, or not writable.
    """
    parent = output.parent
    if not parent.exists():
        try:
            parent.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"the output's folder cannot be made: {error.strerror}",
                where=str(parent),
                remedy="choose another -o",
            ) from error
    probe = _beside(output, "probe")
    try:
        probe.mkdir(exist_ok=True)
        probe.rmdir()
    except OSError as error:
        raise UserError(
            f"the output cannot be written: {error.strerror}",
            where=str(output),
            remedy="choose another -o, or give yourself the right to write there",
        ) from error


@contextmanager
def staged(output: Path, key: str = "") -> Iterator[Path]:
    """A temporary folder beside ``output`` that takes its place when the block ends well.

    Where a killed build left a stage whose journal has ``key``, the folder is that one, with its weights files and
    journal and nothing else; the journal is removed at the end. Other remains of killed builds go. On any
    exception, Ctrl-C included, the folder is removed and what stood at ``output`` stays as it was.

    Raises:
        UserError: the disk is full (with what is free), or something came to stand at ``output``, or changed
            there, while the block ran.
    """
    stage = _beside(output, "building")
    adopted = _adopt(output, stage, key)
    before = _state(output)
    try:
        if not adopted:
            stage.mkdir()
        yield stage
        (stage / JOURNAL).unlink(missing_ok=True)
        _swap(stage, output, before)
    except UserError as error:  # the temporary folder is gone when the user reads this
        where = error.where.replace(str(stage), str(output))
        raise UserError(error.what, where=where, remedy=error.remedy, exit_code=error.exit_code) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(output.parent).free
        raise UserError(
            f"the disk is full ({free / 2**20:.0f} MiB left); nothing was kept of this build",
            where=str(output.parent),
            remedy="free space, or choose another disk with -o",
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _adopt(output: Path, stage: Path, key: str) -> bool:
    """Make ``stage`` of what a killed build of this key left; True where there was one."""
    own = next((path for _, path in _dead(output, ("building",)) if key and journal_key(path) == key), None)
    try:
        if own is not None and own != stage:
            _remove(stage)
            os.rename(own, stage)  # fails where another build took it just now
    except OSError:
        own = None
    for _, path in _dead(output, ("building",)):
        if own is None or path != stage:
            _remove(path)
    if own is None:
        return False
    for path in stage.rglob("*"):
        if path.is_file() and path.suffix != WEIGHTS_SUFFIX and path.name != JOURNAL:
            path.unlink()
    return True


def _state(output: Path) -> tuple[int, ...] | None:
    """What stands at ``output``: changes when it is replaced, and when an entry of the folder is."""
    try:
        status = output.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _swap(stage: Path, output: Path, before: tuple[int, ...] | None) -> None:
    """Put ``stage`` at ``output``; an old bundle is moved aside first and deleted last."""
    old = _beside(output, "old")
    try:
        if _state(output) != before:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(output))
        if before is not None:
            os.rename(output, old)
        os.rename(stage, output)  # fails where a file or a folder with content appeared just now
    except BaseException as error:  # Ctrl-C between the two renames as well
        if old.exists() and not os.path.lexists(output):
            os.rename(old, output)
        if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise UserError(
                "something was put or changed at the output while this build ran; it was left as it is",
                where=str(output),
                remedy="run the same command again (its stages are cached), or choose another -o",
            ) from error
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
