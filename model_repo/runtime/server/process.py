"""The engine process: ``python -m mm2c_runtime.server.process --bundle DIR --socket PATH``.

Serves the engine to the Triton models (or any ``EngineClient``) over a Unix socket. It dies with the
process that started it, so no engine is left behind however that ends; SIGTERM finishes what is in flight
first.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

from mm2c_runtime.engine import Engine
from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.provider import PROVIDERS
from mm2c_runtime.server.listener import Listener
from mm2c_runtime.server.protocol import Message

DRAIN_SECONDS = 10.0
SWITCH_SECONDS = (
    0.0005  # how long a writer thread may keep the engine thread waiting; Python's default is 5 ms
)
_PR_SET_PDEATHSIG = 1
log = logging.getLogger("mm2c.server")


def die_with_parent(parent: int | None) -> None:
    """SIGKILL this process when the thread that started it ends. ``parent``: its expected pid, to notice
    where it has ended already; a Ctrl-C on the terminal is then that process's to handle."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.getppid() != parent:
            sys.exit("the process that started this engine is gone")


def serve(engine: Engine, socket_path: Path, model: Message, *, drain: float = DRAIN_SECONDS) -> None:
    """Serves ``engine`` until SIGTERM, SIGINT, a shutdown message, or the loss of its executor. Call it
    from the main thread. ``model`` is told to clients in the greeting."""
    ended = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        log.info("signal %d: finishing what is in flight", number)
        ended.set()

    signal.signal(signal.SIGTERM, on_signal)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, on_signal)
    try:
        listener = Listener(engine, socket_path, model, on_shutdown=ended.set)
    except BundleError:
        engine.close()
        raise
    log.info("listening on %s", socket_path)
    try:
        while not ended.wait(0.2):
            if not engine.alive:
                log.error("the engine is lost; this process ends so that a new one can be started")
                drain = 1.0
                break
        listener.stop_accepting()
        if not engine.drain(drain):
            log.warning("%d requests were still running after %.0f s", engine.in_flight, drain)
    finally:
        engine.close()
        listener.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mm2c-engine", description="Serve a bundle over a Unix socket.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument(
        "--provider",
        default=None,
        choices=PROVIDERS,
        help="what ONNX Runtime runs on: cpu, or cuda for a GPU for each rank (default $MM2C_PROVIDER, else cpu)",
    )
    parser.add_argument(
        "--lowering", default=None, choices=["fast", "portable"], help="default: fast, on cuda portable"
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of the model")
    parser.add_argument(
        "--kv-tokens",
        type=int,
        default=None,
        help="tokens of KV cache (default $MM2C_KV_TOKENS, else all rows, or what the GPU has room for)",
    )
    parser.add_argument(
        "--checksums", default="full", choices=["sizes", "full"], help="what to check at start"
    )
    parser.add_argument(
        "--self-check",
        default=None,
        choices=["always", "first", "never"],
        help="compare the engine with the bundle's golden vectors before it serves (default $MM2C_SELF_CHECK, else on "
        "the first start on a GPU)",
    )
    parser.add_argument(
        "--ops", default="", help=argparse.SUPPRESS
    )  # in tests: module:class, see Bundle.load
    parser.add_argument("--parent", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    sys.setswitchinterval(SWITCH_SECONDS)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )
    from mm2c_runtime.bundle import Bundle

    try:
        bundle = Bundle.load(
            options.bundle,
            lowering=options.lowering,
            threads=options.threads,
            kv_tokens=options.kv_tokens,
            verify_checksums=options.checksums,
            ops=options.ops,
            self_check=options.self_check,
            provider=options.provider,
        )
        serve(bundle.engine, options.socket, bundle.describe())
    except BundleError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def end(status: int) -> NoReturn:
    """Ends this process at once. Threads of libraries may still compute, and taking the interpreter down under them
    can crash it, which would hide the status."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    end(main())
