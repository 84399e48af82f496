"""The TensorRT library that a bundle's plans were built with: its Python module, its log, and its communicator."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import torch

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.collectives import Collectives
from mm2c_runtime.executors.tensorrt.nccl import join_communicator

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}  # by engine
EXTRAS = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}
_KEPT = 8  # messages that an error may quote
_LOGGERS: list[Any] = []  # kept: the library goes on using the first that it was given, for all that it makes
log = logging.getLogger("mm2c.tensorrt")


class Communicator(Protocol):
    """``handle``: what ``IExecutionContext.set_communicator`` takes."""

    @property
    def handle(self) -> Any: ...
    def close(self) -> None: ...


Join = Callable[[Collectives, torch.device], Communicator]


@dataclass(frozen=True)
class Library:
    """``join`` makes a communicator of all ranks, which call it together. ``complaints``: levels and texts of the
    library's last warnings and errors."""

    module: Any
    join: Join = join_communicator
    complaints: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=_KEPT))

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    def logger(self) -> Any:
        """The library's messages go to this process's log; it calls from threads of its own too."""
        trt, complaints = self.module, self.complaints
        severity = trt.ILogger.Severity
        levels = {
            severity.INTERNAL_ERROR: logging.CRITICAL,
            severity.ERROR: logging.ERROR,
            severity.WARNING: logging.WARNING,
            severity.INFO: logging.DEBUG,
        }

        class Log(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                level = levels.get(severity)
                if level is None:  # verbose
                    return
                if level >= logging.WARNING:
                    complaints.append((level, str(message).strip()))
                log.log(level, "%s", message)

        made = Log()
        _LOGGERS.append(made)
        return made

    def runtime(self) -> Any:
        """An IRuntime. Raises BundleError where the library cannot start: it gives one all the same, whose every use
        would end the process."""
        self.complaints.clear()
        found = self.module.Runtime(self.logger())
        if any(level >= logging.ERROR for level, _ in self.complaints):
            raise BundleError(
                f"{self.module.__name__} {self.version} cannot start: {self.said()}",
                where=str(getattr(self.module, "__file__", "") or sys.prefix),
                remedy="see whether `nvidia-smi` shows the GPU and a driver that is new enough",
            )
        return found

    def said(self) -> str:
        """What the library complained of since this was asked last."""
        text = "; ".join(text for _, text in self.complaints)
        self.complaints.clear()
        return text or "the library gives no reason"


def open_library(engine: str, version: str) -> Library:
    """The installed library of ``engine``. Raises BundleError where it is missing, or is not of ``version``: plans
    run with the very release that built them."""
    name = MODULES[engine]
    try:
        module = import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # its own shared libraries may be missing
        raise BundleError(
            f"the bundle's plans run on {name} {version}, which cannot be imported: {error}",
            where=sys.prefix,
            remedy=f"pip install 'mm2c[{EXTRAS[engine]}]', in the environment that serves the bundle",
        ) from None
    library = Library(module)
    check_version(library, version)
    return library


def check_version(library: Library, version: str) -> None:
    """Raises BundleError where the library is another release."""
    if library.version != version:
        name = library.module.__name__
        raise BundleError(
            f"the plans were built with {name} {version}, {library.version} is installed",
            where=str(getattr(library.module, "__file__", "") or sys.prefix),
            remedy=f"install {name} {version}, or build the bundle again with `mm2c build … --force`",
        )
