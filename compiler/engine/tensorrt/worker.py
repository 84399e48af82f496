"""Builds one plan in a process of its own: the library may crash, and its memory goes back with the process.

Reads a task (JSON) from stdin, tells progress and the result as JSON lines on stdout; the library's messages go to
stderr. SIGTERM ends the build at its next step. The plan appears by rename, whole or not at all.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from mm2c.engine.tensorrt import timing
from mm2c.engine.tensorrt.monitor import Stop, make_monitor
from mm2c.engine.tensorrt.network_table import composition, differences
from mm2c.engine.tensorrt.parse import NetworkRefused, ParsedNetwork, make_logger, parse_network
from mm2c.engine.tensorrt.settings import configure
from mm2c.errors import UserError
from mm2c.host_memory import peak_rss

CANCELLED = 3  # exit status
REFUSED = 4  # exit status: said on stdout what and why
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PARSED = 0.05  # share of the work that parsing counts for
SCRATCH = re.compile(r"Total Activation Memory: (\d+) bytes")
KEPT = 50  # warnings that are told
PR_SET_PDEATHSIG = 1


class _Channel:
    """Lines to whoever started this process, on a stream that the library cannot write into."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(2, 1)  # what native code prints joins its messages
        self._told = (-1, "")

    def progress(self, share: float, phase: str) -> None:
        if (told := (int(share * 100), phase)) != self._told:
            self._told = told
            self._write({"progress": told[0], "phase": phase})

    def done(self, facts: dict[str, Any]) -> None:
        self._write({"done": facts})

    def refuse(self, kind: str, problems: list[str]) -> NoReturn:
        self._write({"refused": kind, "problems": problems})
        sys.exit(REFUSED)

    def _write(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value) + "\n")


class _Said:
    """What the library said: warnings and errors, and the scratch memory of the plan."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.scratch = 0

    def hear(self, severity: str, text: str) -> None:
        if severity != "INFO":
            print(f"{severity.lower()}: {text}", file=sys.stderr, flush=True)
        if found := SCRATCH.search(text):
            self.scratch = max(self.scratch, int(found[1]))
        if severity == "WARNING" and len(self.warnings) < KEPT:
            self.warnings.append(text)
        elif severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(text)


def main() -> None:
    stop = Stop()
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal's Ctrl-C the parent makes what it wants
    signal.signal(signal.SIGTERM, lambda *_: setattr(stop, "asked", True))
    channel, said = _Channel(), _Said()
    task = json.load(sys.stdin)
    try:
        _build(task, channel, said, stop)
    except NetworkRefused as error:
        channel.refuse("graph", list(error.problems))
    except UserError as error:
        channel.refuse("plugins", [str(error)])
    except MemoryError as error:
        channel.refuse("memory", [str(error) or "out of memory"])
    except OSError as error:
        if error.errno not in FULL:
            raise
        channel.refuse("disk", [str(error)])
    finally:
        with suppress(OSError):
            Path(task["part"]).unlink()


def _build(task: dict[str, Any], channel: _Channel, said: _Said, stop: Stop) -> None:
    began = time.monotonic()
    trt = __import__(task["module"])
    logger = make_logger(trt, said.hear, "INFO")
    data = Path(task["graph"]).read_bytes()
    if task["engine"] == "tensorrt":
        from mm2c.engine.tensorrt.preflight import find_nccl

        find_nccl()  # loaded by whatever path, it is there when the library asks the loader for its name
    if task["plugins"]:
        from mm2c.engine.tensorrt.registry import check_taken, load_plugins

        load_plugins(trt, Path(task["plugins"]))
    parsed = parse_network(trt, data, logger)
    if task["plugins"]:
        check_taken(trt, parsed.network, data)
    if problems := differences(parsed.network, task["tensors"]):
        channel.refuse("table", problems)
    channel.progress(PARSED, "parsed")
    config, monitor = _config(parsed, task, channel, said, stop)
    layers, precisions = composition(parsed.network)
    if stop.asked:
        sys.exit(CANCELLED)
    plan = parsed.builder.build_serialized_network(parsed.network, config)
    del monitor  # the library does not keep it alive
    if stop.asked:
        sys.exit(CANCELLED)
    if plan is None:
        channel.refuse("build", said.errors[-3:])
    if task["timing_cache"]:
        timing.keep(config, Path(task["timing_cache"]))
    size = _write(memoryview(plan), Path(task["part"]), Path(task["plan"]))
    channel.done(
        {
            "bytes": size,
            "scratch": said.scratch,
            "seconds": round(time.monotonic() - began, 3),
            "peak": peak_rss(),
            "layers": layers,
            "precisions": precisions,
            "log": said.warnings,
        }
    )


def _config(
    parsed: ParsedNetwork, task: dict[str, Any], channel: _Channel, said: _Said, stop: Stop
) -> tuple[Any, Any]:
    """The builder's configuration, and the monitor that it refers to."""
    config = parsed.builder.create_builder_config()
    try:
        configure(parsed.trt, config, task["engine"], task["target"])
    except ValueError as error:
        channel.refuse("target", [str(error)])
    for shapes in task["profiles"]:
        profile = parsed.builder.create_optimization_profile()
        for name, (smallest, optimal, largest) in shapes.items():
            profile.set_shape(name, smallest, optimal, largest)
        if config.add_optimization_profile(profile) < 0:
            channel.refuse("profile", said.errors[-3:])
    if task["timing_cache"]:
        timing.attach(config, Path(task["timing_cache"]))
    monitor = make_monitor(
        parsed.trt, lambda share, phase: channel.progress(PARSED + share * (1 - PARSED), phase), stop
    )
    config.progress_monitor = monitor
    return config, monitor


def _write(plan: memoryview, part: Path, target: Path) -> int:
    """Bytes that were written."""
    with part.open("wb") as file:
        file.write(plan)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, target)
    return plan.nbytes


def _end_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends, however it does."""
    parent = os.getppid()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(CANCELLED)


if __name__ == "__main__":
    main()
