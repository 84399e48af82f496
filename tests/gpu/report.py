"""What the GPU proof found: one JSON document and one table."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["passed", "FAILED", "skipped", "measured", "below target"]


@dataclass
class Line:
    """``part`` groups lines; ``value`` is what the table shows, ``figures`` what the JSON has besides."""

    part: str
    name: str
    outcome: Outcome
    value: str
    figures: dict[str, Any] = field(default_factory=dict)


class Skip(Exception):
    """A part that cannot run on this machine, with the reason."""


class Report:
    def __init__(self, facts: dict[str, Any], seconds: float) -> None:
        self.facts, self.lines = facts, list[Line]()
        self._began, self._seconds = time.monotonic(), seconds

    @property
    def left(self) -> float:
        """Seconds of the whole run's time that are left."""
        return self._seconds - (time.monotonic() - self._began)

    def add(self, part: str, name: str, outcome: Outcome, shown: str = "", **figures: Any) -> None:
        self.lines.append(Line(part, name, outcome, shown, figures))
        print(f"{outcome:13} {part:10} {name:44} {shown}", flush=True)

    def check(self, part: str, name: str, error: float, limit: float, **figures: Any) -> None:
        """A numeric comparison; NaN never passes."""
        good = error <= limit
        self.add(part, name, "passed" if good else "FAILED", f"error {error:.2e} (limit {limit:.0e})",
                 error=error, limit=limit, **figures)  # fmt: skip

    def target(self, part: str, name: str, value: float, target: float, text: str, *, least: bool,
               **figures: Any) -> None:  # fmt: skip
        """A measured figure beside what the project asks of an H200; missing it is told, not failed."""
        good = value >= target if least else value <= target
        self.add(
            part, name, "measured" if good else "below target", text, value=value, target=target, **figures
        )

    def run(self, part: str, act: Callable[[Report], None], *, needs: float = 0.0) -> None:
        """One part of the proof. What it raises is its failure, and the others go on. ``needs``: seconds that
        must be left to begin it."""
        if self.left < needs:
            self.add(part, "the whole part", "skipped", f"{self.left:.0f} s are left of the run's time")
            return
        began = time.monotonic()
        try:
            act(self)
        except Skip as reason:
            self.add(part, "the whole part", "skipped", str(reason))
        except Exception as error:
            self.add(part, "the whole part", "FAILED", f"{type(error).__name__}: {error}",
                     trace=traceback.format_exc())  # fmt: skip
            traceback.print_exc()
        self.facts.setdefault("seconds", {})[part] = round(time.monotonic() - began, 1)

    @property
    def failed(self) -> bool:
        return any(line.outcome == "FAILED" for line in self.lines)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        document = {**self.facts, "lines": [asdict(line) for line in self.lines]}
        (folder / "gpu.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
        (folder / "gpu.md").write_text(self.table(), encoding="utf-8")

    def table(self) -> str:
        rows = ["| part | what | outcome | figures |", "|---|---|---|---|"]
        rows += [f"| {line.part} | {line.name} | {line.outcome} | {line.value} |" for line in self.lines]
        return "\n".join(rows) + "\n"
