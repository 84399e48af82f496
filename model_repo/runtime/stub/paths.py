"""Where the stubs of one server meet: the bundle, the engine's socket, the flag that keeps the gate shut."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

SOCKET_VARIABLE = "MM2C_ENGINE_SOCKET"


def bundle_root(model_repository: str) -> Path:
    """The bundle of the model folder that Triton names: ``<bundle>/model_repository/<model>``."""
    return Path(model_repository).resolve().parents[1]


def engine_socket(bundle: Path) -> Path:
    """``$MM2C_ENGINE_SOCKET``, or a path that all stubs of one tritonserver agree on and no other server
    shares.

    Every stub is a child of its server, so the parent's pid tells the servers apart.
    """
    given = os.environ.get(SOCKET_VARIABLE)
    if given:
        return Path(given)
    folder = Path(tempfile.gettempdir()) / f"mm2c-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    digest = hashlib.sha256(str(bundle).encode()).hexdigest()[:12]
    return folder / f"{os.getppid()}-{digest}.sock"


def gate_flag(socket: Path) -> Path:
    """While this file exists, ``mm_gate`` refuses to load and the server is not ready."""
    return socket.with_name(socket.name + ".closed")
