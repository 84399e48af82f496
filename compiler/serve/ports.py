"""The ports of a server, checked before anything is started."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from mm2c.errors import UserError


@dataclass(frozen=True)
class Ports:
    http: int
    grpc: int
    metrics: int
    openai: int | None = None  # None: no such front


def choose_ports(
    host: str, http: int, grpc: int, metrics: int, openai: tuple[str, int] | None = None
) -> Ports:
    """The ports as given; 0 picks a free one. ``openai``: host and port of the OpenAI-compatible front.

    Raises UserError naming a port that is taken, or a bad host.
    """
    if ":" in host:
        raise UserError(
            "Triton 2.51 does not listen on IPv6 addresses",
            where=f"--host {host}",
            remedy="use an IPv4 address; the OpenAI API takes others with --openai-host",
        )
    held: list[socket.socket] = []
    try:
        for option, port in (("--http-port", http), ("--grpc-port", grpc), ("--metrics-port", metrics)):
            held.append(_bound(host, port, option))
        if openai is not None:
            held.append(_bound(*openai, "--openai-port"))
        return Ports(*(s.getsockname()[1] for s in held))
    finally:
        for s in held:
            s.close()


def _bound(host: str, port: int, option: str) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, OverflowError) as error:
        raise UserError(f"{host}:{port} is no address: {error}", where=option) from None
    s = socket.socket(family, kind, protocol)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        s.bind(address)
        s.listen()
    except OSError as error:
        s.close()
        raise UserError(
            f"port {port} cannot be used: {(error.strerror or str(error)).lower()}",
            where=f"{option} {port} on {host}",
            remedy=f"stop what listens there, or choose another with {option} (0 picks a free one)",
        ) from None
    return s
