"""What travels over the engine's Unix socket: JSON objects, each behind its length.

    frame = length u32 little-endian · UTF-8 JSON object of that many bytes

client → engine: hello(version) · submit(id, fields) · cancel(id) · stats(tag) · ping(tag) · shutdown
engine → client: hello(version, pid, model, limits) · stats(tag, stats) · pong(tag) · the events of
``Engine``, under the client's own ids. Each side says hello first; anything else before it, or another
version, ends the connection.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any

from mm2c_runtime.errors import BundleError

VERSION = 1
MAX_FRAME = 64 << 20  # bytes; a full context of text is a few MB
MAX_PATH = 107  # bytes of a Unix socket's path on Linux
_LENGTH = struct.Struct("<I")

Message = dict[str, Any]


class ProtocolError(ConnectionError):
    """The other side does not speak this protocol; the connection is of no further use."""


def encode(message: Message) -> bytes:
    """One frame. Raises ProtocolError where it would be larger than MAX_FRAME."""
    body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    if len(body) > MAX_FRAME:
        raise ProtocolError(f"a message of {len(body)} bytes is larger than the limit of {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


class Reader:
    """Frames from a connected socket; used by one thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self.size = 0  # bytes of the last message

    def read(self) -> Message | None:
        """The next message; None where the other side has closed. Raises OSError or ProtocolError."""
        head = self._take(_LENGTH.size)
        if head is None:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > MAX_FRAME:
            raise ProtocolError(f"a frame of {length} bytes was announced; the limit is {MAX_FRAME}")
        body, self.size = self._take(length), length
        if body is None:
            return None
        try:
            message = json.loads(body.decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a frame is not JSON: {error}") from None
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise ProtocolError("a frame is not an object with a type")
        return message

    def _take(self, count: int) -> bytes | None:
        while len(self._buffer) < count:
            received = self._connection.recv(max(count - len(self._buffer), 1 << 16))
            if not received:
                return None
            self._buffer += received
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


def check_hello(message: Message | None) -> Message:
    """The other side's hello. Raises ProtocolError where it is something else, or of another version."""
    if message is None:
        raise ProtocolError("the connection was closed before the greeting")
    if message["type"] != "hello":
        raise ProtocolError(f"a hello was expected, got {message['type']}")
    if message.get("version") != VERSION:
        raise ProtocolError(
            f"protocol version {message.get('version')} meets {VERSION}; update the older side"
        )
    return message


def remove_stale(path: Path) -> bool:
    """Removes a socket file that a killed process left behind; False where somebody serves it.

    Raises BundleError where something else lies there, or the socket is not this user's to remove.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise BundleError(
                "this is a file or a folder, not a socket", where=str(path), remedy="use another path"
            )
        with socket.socket(socket.AF_UNIX) as probe:
            answer = probe.connect_ex(str(path))
        if answer == 0:
            return False
        if answer != errno.ECONNREFUSED:
            raise OSError(answer, os.strerror(answer))
        path.unlink()
    except FileNotFoundError:
        return True
    except OSError as error:
        raise BundleError(
            f"the old socket cannot be removed: {error.strerror}", where=str(path), remedy="use another path"
        ) from None
    return True
