"""All or nothing: a bundle is written into a temporary sibling and renamed when it is whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mm2c.errors import UserError


def _stage_name(output: Path, pid: int) -> Path:
    return output.parent / f".{output.name}.building-{pid}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sweep(output: Path) -> list[Path]:
    """Remove what killed builds of this output left behind (``kill -9`` leaves no chance to clean up)."""
    removed = []
    for path in output.parent.glob(f".{output.name}.building-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


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
    probe = _stage_name(output, os.getpid())
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
def staged(output: Path) -> Iterator[Path]:
    """A temporary folder beside ``output`` that takes its place when the block ends well.

    On any exception, Ctrl-C included, the folder is removed and what stood at ``output`` stays as it was.
    A full disk becomes a UserError with what is free.
    """
    sweep(output)
    stage = _stage_name(output, os.getpid())
    shutil.rmtree(stage, ignore_errors=True)
    try:
        stage.mkdir()
        yield stage
        _swap(stage, output)
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


def _swap(stage: Path, output: Path) -> None:
    """Put ``stage`` at ``output``; an old bundle is moved aside first and deleted last."""
    old = output.parent / f".{output.name}.old-{os.getpid()}"
    if output.exists() or output.is_symlink():
        os.replace(output, old)
    try:
        os.replace(stage, output)
    except OSError:
        if old.exists():
            os.replace(old, output)
        raise
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists() or old.is_symlink():
        old.unlink()
