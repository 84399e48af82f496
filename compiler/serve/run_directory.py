"""The folder of one running server: links to the Python backend, the engine's socket, the readiness flag."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

from mm2c.serve.installation import Installation
from mm2c.serve.processes import alive
from mm2c.serve.python_environments import remove_environments

PREFIX = "mm2c-serve-"
UNIX_PATH_LIMIT = 107  # bytes of a Unix socket's path
SHARED_MEMORY = Path("/dev/shm")
LOCK = "lock"
ENVIRONMENTS = "python_environments"  # names of the folders that the server made in /tmp, one a line


class RunDirectory:
    """Made on construction, private to the user; ``remove`` takes it and the server's shared memory away."""

    def __init__(self, installation: Installation) -> None:
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_short_temporary_folder()))
        self._lock = (self.path / LOCK).open("w")  # held as long as this process lives
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        backend = self.path / "backends" / "python"
        backend.mkdir(parents=True)
        for file in installation.python_backend.iterdir():
            if file.name not in ("__pycache__", installation.stub.name):
                (backend / file.name).symlink_to(file)
        (backend / installation.stub.name).symlink_to(installation.stub)

    @property
    def backends(self) -> Path:
        return self.path / "backends"

    @property
    def socket(self) -> Path:
        return self.path / "engine.sock"

    @property
    def sockets(self) -> list[Path]:
        """Those of engines that have run: ``socket``, and the numbered ones of further replicas."""
        return [self.socket, *self.path.glob("engine.sock.[0-9]*")]

    @property
    def gate_flag(self) -> Path:
        """The name that mm2c_runtime.stub.paths.gate_flag gives to the flag of this socket."""
        return self.path / "engine.sock.closed"

    @property
    def shared_memory_prefix(self) -> str:
        return _shared_memory_prefix(self.path)

    def remember_environments(self, names: set[str]) -> None:
        """Folders that ``clean`` removes, or the next start's ``sweep`` should this process be killed."""
        with (self.path / ENVIRONMENTS).open("a") as file:
            file.writelines(f"{name}\n" for name in sorted(names))

    def clean(self) -> None:
        """What killed processes of the server left outside: only its own, by name."""
        _clean_outside(self.path)
        (self.path / ENVIRONMENTS).unlink(missing_ok=True)

    def remove(self) -> None:
        self.clean()
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def sweep() -> None:
    """Remove the folders and shared memory of supervisors that were killed before they could."""
    for folder in _short_temporary_folder().glob(f"{PREFIX}*"):
        try:
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not _in_use(folder):
                _clean_outside(folder)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # another start sweeps at the same time


def _in_use(folder: Path) -> bool:
    """By its lock, which also holds where a container shares the temporary folder and not the process ids."""
    try:
        with (folder / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:  # not locked yet, or its supervisor died before
        pid = folder.name[len(PREFIX) :].partition("-")[0]
        return not pid.isdigit() or alive(int(pid))


def _clean_outside(folder: Path) -> None:
    for region in SHARED_MEMORY.glob(_shared_memory_prefix(folder) + "*"):
        region.unlink(missing_ok=True)
    names = folder / ENVIRONMENTS
    if names.is_file():
        remove_environments(names.read_text().splitlines())


def _shared_memory_prefix(folder: Path) -> str:
    return folder.name.replace("-", "_") + "_"


def _short_temporary_folder() -> Path:
    """The temporary folder, unless a socket's path in it would be longer than Unix allows."""
    folder = Path(tempfile.gettempdir())
    return folder if len(str(folder)) < UNIX_PATH_LIMIT - 50 else Path("/tmp")
