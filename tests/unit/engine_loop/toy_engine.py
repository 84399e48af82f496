"""A deterministic toy language model behind the executor protocol, and an engine around it.

The toy keeps the token ids themselves as its "KV cache" and computes the next logits from what the cache
row holds, so a wrong row, a forgotten copy or a wrong position changes the tokens.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mm2c_runtime.detokenizer import TokenBytes
from mm2c_runtime.engine import Engine
from mm2c_runtime.generation import Preparer
from mm2c_runtime.generation_defaults import GenerationDefaults
from mm2c_runtime.kv import RowPool
from mm2c_runtime.sampling.sampler import Sampler
from mm2c_runtime.scheduling.scheduler import Scheduler
from mm2c_runtime.step import StepBatch, StepResult

PARSER_TOKENS = ("<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>")


def toy_tokenizer() -> Tokenizer:
    """Every byte is a token (ids 0-255), then a few merges, the end token (special) and the parser tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: index for index, char in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ã", "©")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("[e~[", special=True), AddedToken("]~b]", special=True)])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in PARSER_TOKENS])
    return tokenizer


VOCAB = 288
END = toy_tokenizer().token_to_id("[e~[")


@dataclass
class ToyExecutor:
    """``scripts``: prompt text -> ids that the model "wants" to say after it; otherwise noise from a hash.
    ``delay``: seconds a step takes. ``explode``: called with every batch, may raise."""

    rows: int = 8
    context: int = 128
    scripts: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    delay: float = 0.0
    explode: Any = None

    def __post_init__(self) -> None:
        self.cache = np.full((self.rows + 1, self.context), -1, np.int64)
        self.sampler = Sampler(VOCAB)
        self.batches: list[StepBatch] = []
        self.closed = False

    def forward(self, batch: StepBatch) -> NDArray[np.float32]:
        for copy in batch.copies:
            self.cache[copy.target, : copy.length] = self.cache[copy.source, : copy.length]
            self.cache[copy.source] = -1
        logits = np.empty((len(batch.rows), VOCAB), np.float32)
        for index, step in enumerate(batch.rows):
            end = step.past_len + step.new_len
            assert end <= self.context
            assert (self.cache[step.row, : step.past_len] >= 0).all(), "attends to positions never written"
            self.cache[step.row, step.past_len : end] = step.tokens
            logits[index] = self._logits(self.cache[step.row, :end])
        return logits

    def _logits(self, seen: NDArray[np.int64]) -> NDArray[np.float32]:
        ids = tuple(int(token) for token in seen)
        for prompt, script in self.scripts.items():
            said = ids[len(prompt) :]
            if ids[: len(prompt)] == prompt and tuple(script[: len(said)]) == said:
                wanted = script[len(said)] if len(said) < len(script) else END
                logits = np.zeros(VOCAB, np.float32)
                logits[wanted] = 20.0
                return logits
        noise = np.random.default_rng(abs(hash(ids)))
        logits = noise.standard_normal(VOCAB).astype(np.float32) * 3
        logits[256:] = -30.0
        return logits

    def step(self, batch: StepBatch) -> StepResult:
        self.batches.append(batch)
        if self.delay:
            time.sleep(self.delay)
        if self.explode is not None:
            self.explode(batch)
        for row in batch.released:
            self.sampler.release(row)
        for copy in batch.copies:
            self.sampler.copy(copy.source, copy.target)
        logits = self.forward(batch)
        for step in batch.rows:
            self.sampler.observe(step)
        return StepResult(batch.step_id, self.sampler.sample(logits, batch.rows))

    def close(self) -> None:
        self.closed = True


class ToyTemplate:
    def render(
        self, messages: Any, tools: Any = None, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        turns = "".join(f"]~b]{message['role']}\n{message['content']}[e~[\n" for message in messages)
        return turns + "]~b]ai\n<think>\n"


def toy_preparer(context: int, kv_tokens: int | None = None, **defaults: Any) -> Preparer:
    return Preparer(
        toy_tokenizer(),
        ToyTemplate(),
        GenerationDefaults(**{"eos": frozenset([END]), "temperature": 0.0, **defaults}),
        context=context,
        kv_tokens=kv_tokens,
        vocab=VOCAB,
        will_reason=lambda text: text.rstrip().endswith("<think>"),
    )


def toy_engine(
    executor: ToyExecutor, *, prefill_chunk: int = 8, kv_tokens: int | None = None, **defaults: Any
) -> Engine:
    pool = RowPool(executor.rows, executor.context, kv_tokens)
    scheduler = Scheduler(pool, prefill_chunk=prefill_chunk)
    return Engine(
        executor,
        scheduler,
        toy_preparer(executor.context, kv_tokens, **defaults),
        TokenBytes(toy_tokenizer()),
    )


class Listener:
    """Collects the events of requests and waits for their ends."""

    def __init__(self) -> None:
        self.events: dict[str, list[dict[str, Any]]] = {}
        self._changed = threading.Condition()

    def __call__(self, event: dict[str, Any]) -> None:
        with self._changed:
            self.events.setdefault(event["id"], []).append(json.loads(json.dumps(event)))
            self._changed.notify_all()

    def wait(self, request_id: str, kinds: tuple[str, ...] = ("finish", "error"), timeout: float = 10) -> Any:
        def found() -> Any:
            return next((e for e in self.events.get(request_id, []) if e["type"] in kinds), None)

        with self._changed:
            assert self._changed.wait_for(lambda: found() is not None, timeout), f"{request_id}: no {kinds}"
            return found()

    def text(self, request_id: str) -> str:
        return "".join(event["text"] for event in self.deltas(request_id))

    def tokens(self, request_id: str) -> list[int]:
        return [token for event in self.deltas(request_id) for token in event["token_ids"]]

    def deltas(self, request_id: str) -> list[dict[str, Any]]:
        return [event for event in self.events[request_id] if event["type"] == "delta"]
