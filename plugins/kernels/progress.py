"""How far a long build is."""

from __future__ import annotations

import sys
import time


class Progress:
    """A line that rewrites itself on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.started = self.said = time.monotonic()

    def step(self, name: str) -> None:
        self.done += 1
        now = time.monotonic()
        line = f"kernels: {self.done}/{self.total}, {now - self.started:.0f} s, {name}"
        if sys.stderr.isatty():
            print(f"\r{line[:100]:100}", end="", file=sys.stderr, flush=True)
        elif now - self.said >= 10:
            self.said = now
            print(line, file=sys.stderr, flush=True)

    def end(self, failed: int) -> None:
        start = "\r" if sys.stderr.isatty() else ""
        line = f"kernels: {self.total - failed} compiled, {failed} failed, {time.monotonic() - self.started:.0f} s"
        print(f"{start}{line:100}".rstrip(), file=sys.stderr, flush=True)
