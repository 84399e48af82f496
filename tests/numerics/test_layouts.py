"""Every layout of random small models against the unmodified transformers module in fp32, at `mm2c verify`'s
tolerance: all lowerings, ranks in lockstep."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from remembering import RememberingReference

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "lower"))

from lockstep import Batch, Groups, Lockstep, PagedLockstep, programs_of

import mm2c.lower.cuda
import mm2c.trace
from mm2c.checkpoint import Checkpoint
from mm2c.config import BuildOptions, Mapping
from mm2c.lower.cuda import lower_cuda
from mm2c.lower.onnxruntime import LOWERINGS
from mm2c.lower.portable import attach_bodies
from mm2c.lower.program import LoweredRank
from mm2c.verify.logits import case_result
from mm2c.weights.rank_graph import RankGraph

Array = np.ndarray[Any, Any]
STEPS = 4
PROMPTS = (7, 1, 12)  # tokens of the rows of a batch
CHUNK = 5

MODELS: dict[str, dict[str, Any]] = {
    # 8 query heads of 32 on 2 KV heads, an expert slice of 192, 96, 48: every cut divides some scale block
    "cut-blocks": dict(layers=2, hidden=160, heads=8, kv_heads=2, head_dim=32, rotary_dim=16, intermediate=384,
                       experts=8, top_k=3, vocab=517, seed=41),
    "released-like": dict(layers=2, hidden=128, heads=4, kv_heads=4, head_dim=128, rotary_dim=64,
                          intermediate=384, experts=4, top_k=2, vocab=301, seed=42),
    "dense-one-kv-head": dict(layers=2, hidden=96, heads=8, kv_heads=1, head_dim=48, rotary_dim=24,
                              intermediate=64, experts=12, top_k=4, vocab=267, quant="bf16", seed=43),
    "mixed": dict(layers=1, hidden=128, heads=8, kv_heads=8, head_dim=64, rotary_dim=32, intermediate=192,
                  experts=16, top_k=5, vocab=512, quant="mixed", seed=44),
}  # fmt: skip
TP: dict[str, tuple[tuple[int, int], ...]] = {
    "cut-blocks": ((1, 1), (2, 1), (4, 2), (8, 1)),
    "released-like": ((2, 1), (2, 2), (4, 1), (4, 4)),
    "dense-one-kv-head": ((2, 1), (8, 4)),
    "mixed": ((1, 1), (4, 1), (8, 2), (8, 8)),
}
ATTENTION_DP: dict[str, tuple[tuple[int, int], ...]] = {
    "cut-blocks": ((1, 2), (2, 4), (4, 8)),
    "released-like": ((1, 4),),
    "dense-one-kv-head": ((1, 4), (2, 4)),
    "mixed": ((1, 8),),
}


def paged(graph: RankGraph) -> LoweredRank:
    """The cuda lowering with its ops' bodies, which return new caches."""
    lowered = lower_cuda(graph)
    attach_bodies(lowered.model, collectives=False)
    lowered.in_place = False
    return lowered


RUNS: dict[str, tuple[Callable[[RankGraph], LoweredRank], type[Lockstep]]] = {
    **{name: (lower, Lockstep) for name, lower in LOWERINGS.items()},
    "cuda": (paged, PagedLockstep),
}


@dataclass
class Model:
    """A checkpoint, its traced graph and what transformers makes of it: (prompt, tokens, logits) of rows."""

    checkpoint: Checkpoint
    graph: RankGraph
    reference: RememberingReference

    def rows(self, group: int = 0) -> list[tuple[list[int], list[int], Array]]:
        """The rows of an attention group: three, two, one, one, … of them, of other lengths in every group."""
        rng = np.random.default_rng(group)
        lengths = [length + group for length in PROMPTS[: max(len(PROMPTS) - group, 1)]]
        prompts = [rng.integers(0, self.checkpoint.config.vocab, n).tolist() for n in lengths]
        return [(prompt, *self.reference.run(prompt, STEPS)) for prompt in prompts]

    def lockstep(self, mapping: Mapping, lowering: str) -> Lockstep:
        lower, kind = RUNS[lowering]
        config = self.checkpoint.config
        return kind(programs_of(self.graph, config, mapping, lower), self.checkpoint, config)


@pytest.fixture(scope="module")
def models(random_checkpoint: Callable[..., Path]) -> Callable[[str], Model]:
    @cache
    def made(name: str) -> Model:
        checkpoint = Checkpoint.open(random_checkpoint(**MODELS[name]))
        options = BuildOptions(context=64)
        recipes = checkpoint.recipes(context=options.context)
        graph = mm2c.trace.trace(checkpoint.config, checkpoint.formats, options, recipes)
        return Model(checkpoint, graph, RememberingReference(checkpoint))

    return made


@pytest.fixture(autouse=True)
def _any_scale_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels have blocks of 64 and 128; the bodies that stand for them here have any."""
    monkeypatch.setattr(mm2c.lower.cuda, "BLOCKS", range(1, 129))


def layouts(of: dict[str, tuple[tuple[int, int], ...]]) -> Any:
    cases = [(name, tp, ep) for name, some in of.items() for tp, ep in some]
    ids = [f"{name}-tp{tp}-ep{ep}" for name, tp, ep in cases]
    return pytest.mark.parametrize(("name", "tp", "ep"), cases, ids=ids)


def batches(rows: list[tuple[list[int], list[int], Array]], chunk: int) -> list[tuple[Batch, Array]]:
    """Prefill of every row in chunks, then decode steps of all: each step with the reference's logits of its last
    tokens, or none in the middle of a prompt."""
    found: list[tuple[Batch, Array]] = []
    for index, (prompt, _, logits) in enumerate(rows):
        for start in range(0, len(prompt), chunk):
            part = prompt[start : start + chunk]
            last = start + len(part) == len(prompt)
            found.append(
                ((np.asarray([part]), [start], [len(part)], index), logits[:1] if last else logits[:0])
            )
    for n in range(STEPS):
        ids = np.asarray([[tokens[n]] for _, tokens, _ in rows])
        past = [len(prompt) + n for prompt, _, _ in rows]
        want = np.stack([logits[n + 1] for _, _, logits in rows])
        found.append(((ids, past, [1] * len(rows), 0), want))
    return found


def check(got: list[Array], want: list[Array]) -> None:
    pairs = [(g, w) for g, w in zip(got, want, strict=True) if len(w)]
    result = case_result(
        "", "", [np.concatenate([g for g, _ in pairs])], [np.concatenate([w for _, w in pairs])]
    )
    assert result.passed, result.as_json()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("lowering", list(RUNS))
@layouts(TP)
def test_layout(models: Callable[[str], Model], name: str, tp: int, ep: int, lowering: str) -> None:
    model = models(name)
    run = model.lockstep(Mapping(tp, ep), lowering)
    for chunk in (CHUNK, max(PROMPTS)):
        script = batches(model.rows(), chunk)
        run.reset(rows=len(PROMPTS), capacity=32)
        check([run.step(*batch) for batch, _ in script], [want for _, want in script])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("lowering", list(RUNS))
@layouts(ATTENTION_DP)
def test_attention_dp(models: Callable[[str], Model], name: str, tp: int, ep: int, lowering: str) -> None:
    """Groups begin one after the other: some prefill while others decode or have nothing to do."""
    model, mapping = models(name), Mapping(tp, ep, dp=ep // tp)
    count = mapping.attention_dp
    run = Groups(model.lockstep(mapping, lowering), mapping)
    run.reset(rows=len(PROMPTS), capacity=64)
    scripts = [[None] * group + batches(model.rows(group), CHUNK) for group in range(count)]
    found: list[list[tuple[Array, Array]]] = [[] for _ in scripts]
    for n in range(max(map(len, scripts))):
        now = [script[n] if n < len(script) else None for script in scripts]
        answers = run.step([None if step is None else step[0] for step in now], spare=n % 2)
        for group, (step, logits) in enumerate(zip(now, answers, strict=True)):
            if step is not None and logits is not None:
                found[group].append((logits, step[1]))
    for pairs in found:
        check([got for got, _ in pairs], [want for _, want in pairs])
