"""What an engine step costs beside the model: python tests/benchmarks/bench_engine_loop.py [--steps N] [--json]

A decode step of eight rows, each with a request that streams, sampled as released (temperature 1, top-p 0.95,
top-k 40). The executor returns fixed logits; everything else is the real engine on its thread. Medians over the
steps in microseconds, at the vocabulary of the demo and at MiniMax-M2's. The total is that of a run in which the
parts are not timed; "other" is what it has beyond them.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from mm2c_runtime.answer import Answer
from mm2c_runtime.detokenizer import TokenBytes
from mm2c_runtime.engine import Engine
from mm2c_runtime.generation import Preparer
from mm2c_runtime.generation_defaults import GenerationDefaults
from mm2c_runtime.kv import RowPool
from mm2c_runtime.requests import parse_request
from mm2c_runtime.sampling.sampler import Sampler
from mm2c_runtime.scheduling.scheduler import Scheduler
from mm2c_runtime.server.outgoing import Outgoing
from mm2c_runtime.step import StepBatch, StepResult

TOKENIZER = Path(__file__).resolve().parents[1] / "fixtures" / "tiny-m2" / "tokenizer.json"
VOCABULARIES = {"demo": 736, "MiniMax-M2": 200_064}
ROWS = 8
TARGET_US = 400.0  # of a step at the demo's vocabulary; above is a regression
ADD = "detokenise + parse"
PARTS = ("schedule", "sample", ADD, "emit")
TEXT = 300  # ids below this are sampled: ordinary text, no markers


class FixedLogits:
    """An executor whose model takes no time: the same logits in every step, a real sampler.

    ``totals``: seconds of each full decode step, from the end of the last one's sampling to the end of its own;
    ``parts``: what of it was spent where, if ``timed`` functions were called meanwhile.
    """

    def __init__(self, vocab: int, outgoing: Outgoing) -> None:
        rng = np.random.default_rng(0)
        self._logits = (rng.standard_normal((ROWS, vocab)) * 3).astype(np.float32)
        self._logits[:, TEXT:] -= 30.0
        self._sampler, self._outgoing = Sampler(vocab), outgoing
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._left = time.perf_counter()
        self.totals: list[float] = []
        self.parts: list[dict[str, float]] = []

    def step(self, batch: StepBatch) -> StepResult:
        loop = time.perf_counter() - self._left
        self._outgoing.put({"type": "tick"})  # so that ``take`` does not wait
        self._outgoing.take()  # as the writer thread would; not counted
        began = time.perf_counter()
        for row in batch.released:
            self._sampler.release(row)
        for copy in batch.copies:
            self._sampler.copy(copy.source, copy.target)
        for step in batch.rows:
            self._sampler.observe(step)
        result = StepResult(batch.step_id, self._sampler.sample(self._logits[: len(batch.rows)], batch.rows))
        self._left = time.perf_counter()
        self._spent["sample"] += self._left - began
        if len(batch.rows) == ROWS:
            self.totals.append(loop + self._left - began)
            self.parts.append(self._spent)
        self._spent = dict.fromkeys(PARTS, 0.0)
        return result

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose time counts for ``part``."""

        def call(*arguments: Any, **more: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **more)
            self._spent[part] += time.perf_counter() - began
            return result

        return call

    def close(self) -> None:
        """Nothing is held."""


def run(vocab: int, steps: int, *, in_parts: bool) -> FixedLogits:
    """Eight requests of ``steps`` tokens, from the first to the last."""
    tokenizer, outgoing, ended = Tokenizer.from_file(str(TOKENIZER)), Outgoing(), threading.Semaphore(0)
    executor = FixedLogits(vocab, outgoing)
    scheduler = Scheduler(RowPool(ROWS, steps + 8), prefill_chunk=8)
    end = frozenset([tokenizer.token_to_id("[e~[")])  # it is never sampled
    defaults = GenerationDefaults(temperature=1.0, top_k=40, top_p=0.95, eos=end)
    template: Any = None  # prompts are raw text
    preparer = Preparer(
        tokenizer, template, defaults, context=steps + 8, vocab=vocab, will_reason=lambda text: True
    )
    engine: Any = Engine(executor, scheduler, preparer, TokenBytes(tokenizer))

    def on_event(event: dict[str, Any]) -> None:
        outgoing.put({**event, "id": event["id"]})
        if event["type"] in ("finish", "error"):
            ended.release()

    with ExitStack() as patches:
        if in_parts:
            for name in ("next_batch", "apply", "expired"):
                setattr(scheduler, name, executor.timed("schedule", getattr(scheduler, name)))
            add, take = executor.timed(ADD, Answer.add), executor.timed("emit", Answer.take)
            patches.enter_context(patch.multiple(Answer, add=add, take=take))
            engine._send = executor.timed("emit", engine._send)
        for number in range(ROWS):
            fields = {"text_input": "hi", "parse": True, "stream": True, "max_tokens": steps, "seed": number}
            engine.submit(str(number), parse_request(fields), on_event)
        for _ in range(ROWS):
            ended.acquire()
        engine.close()
    return executor


def measure(vocab: int, steps: int) -> dict[str, float]:
    """Medians in microseconds of each part and of the whole step."""
    total = statistics.median(run(vocab, steps, in_parts=False).totals) * 1e6
    parts = run(vocab, steps, in_parts=True).parts
    found = {name: statistics.median(part[name] for part in parts) * 1e6 for name in PARTS}
    return {**found, "other": max(0.0, total - sum(found.values())), "total": total}


def main() -> int:
    parser = argparse.ArgumentParser(description="The engine loop without a model, microseconds a step.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    figures = {name: measure(vocab, options.steps) for name, vocab in VOCABULARIES.items()}
    if options.json:
        print(json.dumps({"rows": ROWS, "steps": options.steps, "us": figures, "target_us": TARGET_US}))
    else:
        table = Table(title=f"Engine loop, {ROWS} rows a step, µs (median of {options.steps} steps)")
        table.add_column("part")
        for name, vocab in VOCABULARIES.items():
            table.add_column(f"{name}, V = {vocab:,}", justify="right")
        for part in (*PARTS, "other", "total"):
            table.add_row(part, *(f"{figure[part]:,.0f}" for figure in figures.values()))
        Console().print(table)
    return int(figures["demo"]["total"] > TARGET_US)


if __name__ == "__main__":
    sys.exit(main())
