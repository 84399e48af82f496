"""What every verb prints with: two consoles, a progress display, and the frame that turns errors into exits."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from mm2c.errors import UserError
from mm2c.progress import Bytes, Stage

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

INTERRUPTED = 130  # exit status, as shells count SIGINT
LINE_PAUSE = 30.0  # seconds between two lines about a long stage in a log
PIPE_WIDTH = 1000  # columns that a table may take where no terminal shows it


class _BarStage:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, amount: int = 1) -> None:
        self._bars.advance(self._task, amount)


class _LineStage:
    """Bytes where no bar can be drawn: a line now and then with the rate and the time left."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total = title, total
        self._done = 0
        self._began = self._told = time.monotonic()

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._told < LINE_PAUSE or self._done >= self._total:
            return
        self._told = now
        rate = self._done / (now - self._began)
        left = timedelta(seconds=round((self._total - self._done) / max(rate, 1)))
        err.print(
            f"· {escape(self._title)}: {decimal(self._done)} of {decimal(self._total)}, {decimal(int(rate))}/s, "
            f"{left} left",
            soft_wrap=True,
        )


class Bars:
    """Progress bars on stderr; plain lines where stderr is no terminal, so that logs stay readable."""

    def __init__(self) -> None:
        self._live = err.is_terminal

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Stage]:
        counts = (DownloadColumn(), TransferSpeedColumn()) if isinstance(total, Bytes) else ()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%") if total else TextColumn(""),
            *counts,
            TimeElapsedColumn(),
            TimeRemainingColumn() if total else TextColumn(""),
        )
        if not self._live:
            err.print(f"· {escape(title)}", soft_wrap=True)
            if isinstance(total, Bytes):
                yield _LineStage(title, total)
                return
        with Progress(*columns, console=err, transient=True, disable=not self._live) as bars:
            yield _BarStage(bars, bars.add_task(escape(title), total=total))

    def note(self, text: str) -> None:
        err.print(escape(text), soft_wrap=True)


def print_json(value: Any) -> None:
    """Machine-readable answer on stdout, one document, never wrapped or coloured."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(table: Table) -> None:
    """On stdout; in a pipe as wide as it is, so that no column is cut or broken over lines."""
    if out.is_terminal:
        out.print(table)
    else:
        Console(highlight=False, width=PIPE_WIDTH).print(table)


def fail(error: Exception, exit_code: int) -> None:
    """Print what, where and the remedy to stderr and leave."""
    err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
    raise typer.Exit(exit_code)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Signal handler: end as on Ctrl-C."""
    raise KeyboardInterrupt


@contextmanager
def user_errors(interrupted: str = "") -> Iterator[None]:
    """A user's mistake becomes a message and an exit status; Ctrl-C and SIGTERM leave as such. Defects stay loud.

    ``interrupted``: what else Ctrl-C tells, for a verb that writes.
    ``MM2C_TRACEBACK=1`` shows the traceback of a user error too.
    """
    from mm2c_runtime.errors import BundleError, RequestError

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except UserError as error:
        if os.environ.get("MM2C_TRACEBACK"):
            raise
        fail(error, error.exit_code)
    except (BundleError, RequestError) as error:
        if os.environ.get("MM2C_TRACEBACK"):
            raise
        fail(error, 2 if isinstance(error, BundleError) else 1)  # 1: asked well, but the request failed
    except KeyboardInterrupt:
        err.print("[yellow]interrupted[/]" + (f": {interrupted}" if interrupted else ""), soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, previous)
