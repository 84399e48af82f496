"""Where the stubs of one server meet: the bundle, the engine's socket, the flag that keeps the gate shut."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from mm2c_runtime.errors import BundleError

SOCKET_VARIABLE = "MM2C_ENGINE_SOCKET"


def bundle_root(model_repository: str) -> Path:
    """The bundle of the model folder that Triton names: ``<bundle>/model_repository/<model>``."""
    return Path(model_repository).resolve().parents[1]


def engine_socket(bundle: Path) -> Path:
    """``$MM2C_ENGINE_SOCKET``, or a path that all stubs of one tritonserver agree on and no other server
    shares.

    Every stub is a child of its server, so the parent's pid tells the servers apart. Raises BundleError where
    the folder for it could be reached by other users.
    """
    given = os.environ.get(SOCKET_VARIABLE)
    if given:
        return Path(given)
    folder = _private_folder()
    digest = hashlib.sha256(str(bundle).encode()).hexdigest()[:12]
    return folder / f"{os.getppid()}-{digest}.sock"


def _private_folder() -> Path:
    """``mm2c`` in $XDG_RUNTIME_DIR where that is set, else ``mm2c-UID`` in the temporary folder; 0700.

    Whoever can put a socket there can pose as the engine, and read every prompt.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) / "mm2c" if runtime else Path(tempfile.gettempdir()) / f"mm2c-{os.getuid()}"
    wrong = None
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            wrong = "is a symbolic link or a file"
        elif status.st_uid != os.getuid():
            wrong = f"belongs to the user {status.st_uid}, not to {os.getuid()}"
        elif status.st_mode & 0o077:
            wrong = f"is open to other users (mode {stat.S_IMODE(status.st_mode):04o})"
    except OSError as error:
        wrong = f"cannot be made: {error.strerror}"
    if wrong is not None:
        raise BundleError(
            f"the folder for the engine's socket {wrong}",
            where=str(folder),
            remedy="remove it, or name another folder of your own with mode 0700: $XDG_RUNTIME_DIR; "
            f"or the socket itself: ${SOCKET_VARIABLE}",
        )
    return folder


def load_file(socket: Path) -> Path:
    """Where the stubs of a server with several replicas count their requests."""
    return socket.with_name(socket.name + ".load")


def gate_flag(socket: Path) -> Path:
    """While this file exists, ``mm_gate`` refuses to load and the server is not ready."""
    return socket.with_name(socket.name + ".closed")
