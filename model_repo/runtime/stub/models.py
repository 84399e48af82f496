"""The bodies of the Triton models; ``model.py`` only finds the bundle and forwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mm2c_runtime.errors import BundleError
from mm2c_runtime.stub.fleet import Fleet, replica_gates
from mm2c_runtime.stub.gate import Gate
from mm2c_runtime.stub.keeper import Keeper
from mm2c_runtime.stub.load import STUBS, Load
from mm2c_runtime.stub.model_control import model_control
from mm2c_runtime.stub.paths import bundle_root, engine_socket, gate_flag, load_file
from mm2c_runtime.stub.replicas import Replica, replicas_of
from mm2c_runtime.stub.service import Service


class StreamingModel:
    """``minimax_m2``: decoupled; owns the engine processes, one a replica, and the readiness gate."""

    def __init__(self, pb: Any, args: dict[str, str]) -> None:
        bundle = bundle_root(args["model_repository"])
        replicas = _replicas(pb, bundle)
        self._service = _service(pb, replicas, self._lost, unary=False)
        gate = Gate(model_control(pb), gate_flag(replicas[0].socket), pb.Logger.log_error)
        gates = replica_gates(gate, len(replicas))
        self._fleet = Fleet(
            [
                Keeper(bundle, own.socket, link, gate, pb.Logger.log_warn, own if len(replicas) > 1 else None)
                for own, link, gate in zip(replicas, self._service.links, gates, strict=True)
            ]
        )
        try:
            self._fleet.start()
        except Exception as error:
            self._service.close()
            raise pb.TritonModelException(str(error)) from None  # Triton prints it without a traceback

    def execute(self, requests: list[Any]) -> None:
        self._service.execute(requests)

    def close(self) -> None:
        self._service.close()
        self._fleet.stop()

    def _lost(self, replica: int) -> None:
        self._fleet.lost(replica)


class UnaryModel:
    """``minimax_m2_unary``: one response a request, from the engines that ``minimax_m2`` runs."""

    def __init__(self, pb: Any, args: dict[str, str]) -> None:
        replicas = _replicas(pb, bundle_root(args["model_repository"]))
        self._service = _service(pb, replicas, _nothing, unary=True)
        self._service.link.keep_connected()

    def execute(self, requests: list[Any]) -> None:
        self._service.execute(requests)

    def close(self) -> None:
        self._service.close()


def check_gate(args: dict[str, str]) -> None:
    """Raises RuntimeError while the gate is closed, which makes Triton report that it is not ready."""
    flag: Path = gate_flag(engine_socket(bundle_root(args["model_repository"])))
    if flag.exists():
        raise RuntimeError("UNAVAILABLE: the engine is being restarted")


def _replicas(pb: Any, bundle: Path) -> list[Replica]:
    try:
        return replicas_of(bundle, engine_socket(bundle))
    except BundleError as error:
        raise pb.TritonModelException(str(error)) from None


def _service(pb: Any, replicas: list[Replica], lost: Callable[[int], None], *, unary: bool) -> Service:
    first, *others = [(own.socket, partial(lost, own.number)) for own in replicas]
    load = Load(load_file(first[0]), STUBS[unary], len(replicas)) if others else None
    return Service(pb, *first, unary=unary, others=others, load=load)


def _nothing(replica: int) -> None:
    return
