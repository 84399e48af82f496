"""The folder of one running server: links to the Python backend, the engine's socket, the readiness flag."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from mm2c.serve.installation import Installation
from mm2c.serve.processes import alive

PREFIX = "mm2c-serve-"
UNIX_PATH_LIMIT = 107  # bytes of a Unix socket's path
SHARED_MEMORY = Path("/dev/shm")


class RunDirectory:
    """Made on construction, private to the user; ``remove`` takes it and the server's shared memory away."""

    def __init__(self, installation: Installation) -> None:
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_short_temporary_folder()))
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
    def gate_flag(self) -> Path:
        """The name that mm2c_runtime.stub.paths.gate_flag gives to the flag of this socket."""
        return self.path / "engine.sock.closed"

    @property
    def shared_memory_prefix(self) -> str:
        return self.path.name.replace("-", "_") + "_"

    def remove_shared_memory(self) -> None:
        """What killed stubs left in /dev/shm; only this server's, as the prefix carries the folder's name."""
        for region in SHARED_MEMORY.glob(self.shared_memory_prefix + "*"):
            region.unlink(missing_ok=True)

    def remove(self) -> None:
        self.remove_shared_memory()
        shutil.rmtree(self.path, ignore_errors=True)


def sweep() -> None:
    """Remove the folders and shared memory of supervisors that were killed before they could."""
    for folder in _short_temporary_folder().glob(f"{PREFIX}*"):
        pid = folder.name[len(PREFIX) :].partition("-")[0]
        if pid.isdigit() and not alive(int(pid)) and folder.stat().st_uid == os.getuid():
            for region in SHARED_MEMORY.glob(folder.name.replace("-", "_") + "_*"):
                region.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def _short_temporary_folder() -> Path:
    """The temporary folder, unless a socket's path in it would be longer than Unix allows."""
    folder = Path(tempfile.gettempdir())
    return folder if len(str(folder)) < UNIX_PATH_LIMIT - 50 else Path("/tmp")
