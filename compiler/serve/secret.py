"""The secret that keeps model control for the supervisor: only it and the stubs may load and unload models.

Triton takes the secret on its command line and nowhere else, where every user of this machine could read it in
`ps`. So the bytes are blanked in the server's memory as soon as it has read them; until then (a fraction of a
second), or where the system forbids writing there, local users can see it. Nobody else ever can. The stubs
get it in their environment, which only their own user may read.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from mm2c_runtime.stub.model_control import SECRET_HEADER

# What changes the server, and shared memory: a client that registers a region by name could name the stubs' own.
RESTRICTED = "model-repository,shared-memory,trace,logging"
# Fields of /proc/PID/stat behind the command's name: where the arguments begin and end in memory.
_ARGUMENTS_START, _ARGUMENTS_END = 45, 46


def new_secret() -> str:
    return secrets.token_hex(24)


def restrictions(secret: str) -> list[str]:
    """Arguments of tritonserver that close model control, tracing and log settings over HTTP and gRPC."""
    return [
        f"--http-restricted-api={RESTRICTED}:{SECRET_HEADER}={secret}",
        f"--grpc-restricted-protocol={RESTRICTED}:{SECRET_HEADER}={secret}",
    ]


def blank(pid: int, secret: str) -> bool:
    """Overwrite ``secret`` in the command line of ``pid``, a child of this process; False where refused."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[_ARGUMENTS_START]), int(fields[_ARGUMENTS_END])
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            memory.seek(start)
            memory.write(arguments.replace(secret.encode(), b"*" * len(secret)))
    except (OSError, ValueError, IndexError):
        return False
    return True
