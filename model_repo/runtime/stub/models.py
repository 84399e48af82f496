"""The bodies of the Triton models; ``model.py`` only finds the bundle and forwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm2c_runtime.errors import BundleError
from mm2c_runtime.stub.gate import Gate
from mm2c_runtime.stub.keeper import Keeper
from mm2c_runtime.stub.model_control import model_control
from mm2c_runtime.stub.paths import bundle_root, engine_socket, gate_flag
from mm2c_runtime.stub.service import Service


class StreamingModel:
    """``minimax_m2``: decoupled; owns the engine process and the readiness gate."""

    def __init__(self, pb: Any, args: dict[str, str]) -> None:
        bundle = bundle_root(args["model_repository"])
        socket = _socket(pb, bundle)
        self._service = Service(pb, socket, self._lost, unary=False)
        gate = Gate(model_control(pb), gate_flag(socket), pb.Logger.log_error)
        self._keeper = Keeper(bundle, socket, self._service.link, gate, pb.Logger.log_warn)
        try:
            self._keeper.start()
        except Exception as error:
            self._service.close()
            raise pb.TritonModelException(str(error)) from None  # Triton prints it without a traceback

    def execute(self, requests: list[Any]) -> None:
        self._service.execute(requests)

    def close(self) -> None:
        self._service.close()
        self._keeper.stop()

    def _lost(self) -> None:
        self._keeper.lost()


class UnaryModel:
    """``minimax_m2_unary``: one response a request, from the engine that ``minimax_m2`` runs."""

    def __init__(self, pb: Any, args: dict[str, str]) -> None:
        socket = _socket(pb, bundle_root(args["model_repository"]))
        self._service = Service(pb, socket, _nothing, unary=True)
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


def _socket(pb: Any, bundle: Path) -> Path:
    try:
        return engine_socket(bundle)
    except BundleError as error:
        raise pb.TritonModelException(str(error)) from None


def _nothing() -> None:
    return
