"""The engine processes of one server: one for each replica of the bundle, with its share of the machine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.provider import VARIABLE as PROVIDER_VARIABLE

DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Replica:
    """``threads``: CPU threads of its model, None for as many as it may use. ``environment``: what its process has
    besides this one's."""

    number: int
    socket: Path
    threads: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def replicas_of(bundle: Path, socket: Path, environment: Mapping[str, str] = os.environ) -> list[Replica]:
    """The replicas of a bundle. The first one's socket is ``socket``, those of the others lie beside it.

    Several replicas on GPUs: each sees as many of ``$CUDA_VISIBLE_DEVICES`` (default 0, 1, …) as it has ranks, in
    order. On the CPU they share the cores equally. Raises BundleError where fewer GPUs are visible than they need.
    """
    mapping, engine = _manifest(bundle)
    groups = max(mapping["ep"] // mapping["tp"], 1)  # that share experts, and are one replica
    count, ranks = mapping["dp"] // groups, mapping["tp"] * groups
    if count <= 1:
        return [Replica(0, socket)]
    if engine == "onnxruntime" and environment.get(PROVIDER_VARIABLE) != "cuda":
        threads = max(1, len(os.sched_getaffinity(0)) // count)
        return [Replica(n, replica_socket(socket, n), threads) for n in range(count)]
    visible = environment.get(DEVICES_VARIABLE)
    devices = [d.strip() for d in visible.split(",") if d.strip()] if visible is not None else None
    if devices is None:
        devices = [str(number) for number in range(count * ranks)]
    if len(devices) < count * ranks:
        raise BundleError(
            f"{count} replicas of {ranks} ranks need {count * ranks} GPUs, {DEVICES_VARIABLE} names {len(devices)}",
            where=DEVICES_VARIABLE,
            remedy="name more of them there, unset it, or build with a smaller --dp",
        )
    return [
        Replica(
            n,
            replica_socket(socket, n),
            environment={DEVICES_VARIABLE: ",".join(devices[n * ranks : (n + 1) * ranks])},
        )
        for n in range(count)
    ]


def replica_socket(socket: Path, number: int) -> Path:
    return socket if number == 0 else socket.with_name(f"{socket.name}.{number}")


def _manifest(bundle: Path) -> tuple[dict[str, int], str]:
    """Its mapping and engine; a manifest that cannot be read is the engine's to complain of."""
    try:
        found: Any = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        mapping = {name: int(found["mapping"].get(name, 1)) for name in ("tp", "ep", "dp")}
        return mapping, str(found["engine"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"tp": 1, "ep": 1, "dp": 1}, ""
