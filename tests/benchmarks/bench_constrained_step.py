"""What a grammar adds to an engine step: python tests/benchmarks/bench_constrained_step.py [--steps N]

Decode steps of eight rows at MiniMax-M2's vocabulary, free and bound by a demanded tool call, interleaved. The model
is a wait, as a GPU's is for the host; masks are computed meanwhile, so that a step should cost what it costs without
them but for taking the token and applying the mask. Beside it the same with masks computed before the model runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any

import numpy as np
from bench_grammar import EOS, made_up_tokenizer
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from mm2c_runtime.detokenizer import TokenBytes
from mm2c_runtime.engine import Engine
from mm2c_runtime.generation import Preparer
from mm2c_runtime.generation_defaults import GenerationDefaults
from mm2c_runtime.kv import RowPool
from mm2c_runtime.requests import parse_request
from mm2c_runtime.sampling.sampler import Sampler
from mm2c_runtime.scheduling.scheduler import Scheduler
from mm2c_runtime.step import StepBatch, StepResult

VOCABULARY = 200_064
ROWS = 8
MODEL_MS = 9.0  # a decode step of M2 on four H200
ROUNDS = 3
TOOL = {
    "type": "function",
    "function": {
        "name": "write",
        "parameters": {
            "type": "object",
            "properties": {
                "path": {"type": "string", "maxLength": 40},
                "text": {"type": "string", "maxLength": 2000},
            },
            "required": ["text"],
        },
    },
}


class Waiting:
    """An executor whose model is a wait. ``seconds``: of full decode steps, from the end of one to that of the next."""

    def __init__(self, tokenizer: Tokenizer, *, beside: bool) -> None:
        rng = np.random.default_rng(0)
        self._logits = (rng.standard_normal((ROWS, VOCABULARY)) * 2).astype(np.float32)
        for token, number in tokenizer.get_vocab().items():
            if "<" in token:  # so that texts do not end
                self._logits[:, number] -= 20.0
        self._sampler, self._beside = Sampler(VOCABULARY), beside
        self._left = time.perf_counter()
        self.seconds: list[float] = []

    def step(self, batch: StepBatch) -> StepResult:
        for row in batch.released:
            self._sampler.release(row)
        for copy in batch.copies:
            self._sampler.copy(copy.source, copy.target)
        for step in batch.rows:
            self._sampler.observe(step)
            if not self._beside and isinstance(step.bitmask, Future):
                step.bitmask.result()
        time.sleep(MODEL_MS / 1e3)
        result = StepResult(batch.step_id, self._sampler.sample(self._logits[: len(batch.rows)], batch.rows))
        now = time.perf_counter()
        if len(batch.rows) == ROWS:
            self.seconds.append(now - self._left)
        self._left = now
        return result

    def close(self) -> None:
        """Nothing is held."""


class Template:
    def render(self, messages: Any, tools: Any = None, add_generation_prompt: bool = True, **_: Any) -> str:
        return "write: "


def run(tokenizer: Tokenizer, steps: int, *, bound: bool, beside: bool) -> float:
    """Median milliseconds of a step beyond the model's own."""
    executor = Waiting(tokenizer, beside=beside)
    defaults = GenerationDefaults(
        temperature=1.0, top_k=40, top_p=0.95, eos=frozenset([tokenizer.token_to_id(EOS)])
    )
    preparer = Preparer(
        tokenizer, Template(), defaults, context=steps + 64, vocab=VOCABULARY, will_reason=lambda text: False
    )
    scheduler = Scheduler(RowPool(ROWS, steps + 64), prefill_chunk=64)
    engine = Engine(executor, scheduler, preparer, TokenBytes(tokenizer))
    ended = threading.Semaphore(0)
    endings: list[str] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["type"] in ("finish", "error"):
            endings.append(event.get("finish_reason") or event["message"])
            ended.release()

    fields: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "stream": True, "tools": [TOOL]}
    fields |= {"max_tokens": steps, "ignore_eos": True}
    if bound:
        fields["tool_choice"] = "required"
    for number in range(ROWS):
        engine.submit(str(number), parse_request({**fields, "seed": number}), on_event)
    for _ in range(ROWS):
        ended.acquire()
    engine.close()
    assert set(endings) == {"length"}, endings
    return statistics.median(executor.seconds) * 1e3 - MODEL_MS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    tokenizer = made_up_tokenizer()
    kinds = {
        "free": {"bound": False, "beside": True},
        "bound, masks beside the model": {"bound": True, "beside": True},
        "bound, masks before the model": {"bound": True, "beside": False},
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, kind in kinds.items():
            found[name].append(run(tokenizer, steps, **kind))
    table = Table(title=f"{ROWS} rows, vocabulary {VOCABULARY:,}, a model of {MODEL_MS:g} ms")
    for column in ("requests", "ms a step beyond the model", "ratio of whole steps"):
        table.add_column(column)
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, value in medians.items():
        table.add_row(name, f"{value:.2f}", f"{(MODEL_MS + value) / (MODEL_MS + medians['free']):.3f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
