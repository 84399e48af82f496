"""A bundle against the unmodified decoder layers, layer by layer, in memory that no checkpoint's size changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm2c.host_memory import peak_rss
from mm2c.verify.expert_stacks import KEPT, ExpertCache
from mm2c.verify.fault import faulty_tensors
from mm2c.verify.layer_engine import LayerEngine, LayerOutput
from mm2c.verify.layer_error import (
    CHAIN_TIE,
    LayerResult,
    chain_relative,
    compare_hidden,
    compare_logits,
    engine_dtype,
)
from mm2c.verify.script import Script
from mm2c.verify.tensor_source import Sources, TensorSource
from mm2c_runtime.manifest import Manifest

if TYPE_CHECKING:
    from mm2c.checkpoint import Checkpoint
    from mm2c.progress import Progress
    from mm2c.verify.golden_file import GoldenWriter

TELL_SECONDS = 60.0


@dataclass
class Streamed:
    """``peak_rss``: bytes, of the whole process; ``experts``: by layer, how many experts the tokens chose."""

    results: list[LayerResult] = field(default_factory=list)
    tokens: int = 0
    experts: list[int] = field(default_factory=list)
    seconds: float = 0.0
    peak_rss: int = 0

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)


@dataclass
class _Engine:
    """An engine with the weight files that it reads."""

    layers: LayerEngine
    dtype: str
    weights: list[Path]
    sources: Sequence[TensorSource]


def verify_streamed(
    bundle: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    lowerings: Sequence[str],
    script: Script,
    progress: Progress,
    *,
    layers: Sequence[int] | None = None,
    golden: GoldenWriter | None = None,
    memory: int = KEPT,
) -> Streamed:
    """Compare every layer, or ``layers`` alone: each is then fed what the one before it in the list made.

    ``golden`` is given the reference's values. ``memory``: bytes of experts that are kept while
    a layer runs. Raises BundleError where a program cannot be run.
    """
    from mm2c.verify.streamed_reference import StreamedReference

    began = time.monotonic()
    numbers = list(range(manifest.model.layers)) if layers is None else sorted(set(layers))
    outcome = Streamed(tokens=script.tokens)
    with Opened(bundle, manifest, checkpoint, lowerings, script, memory) as engines:
        reference = StreamedReference(checkpoint, manifest.weight_format, ExpertCache(memory))
        with progress.stage(
            f"{len(numbers)} layers, {script.tokens} tokens, one layer at a time", len(numbers) + 2
        ) as stage:
            hidden = reference.embed(script)
            if golden:
                golden.add_hidden(hidden)
            for engine in engines:
                outcome.results.append(_embedding(engine, hidden, checkpoint))
            stage.advance()
            ties = 0
            said = started = time.monotonic()
            for done, number in enumerate(numbers):
                now = time.monotonic()
                if done and now - said > TELL_SECONDS:  # also where no terminal shows a bar
                    said, left = now, (now - started) / done * (len(numbers) - done)
                    progress.note(f"{done} of {len(numbers)} layers compared, about {left / 60:.0f} min left")
                run = reference.run_layer(number, script, hidden)
                outcome.experts.append(len(run.experts))
                ties += sum(int((margin < CHAIN_TIE).sum()) for margin in run.margin)
                for engine in engines:
                    output = engine.layers.run_layer(number, hidden)
                    outcome.results.append(_layer(engine, number, output, hidden, run, checkpoint))
                hidden = run.hidden
                if golden:
                    golden.add_hidden(hidden)
                stage.advance()
            wanted = {piece: row.numpy() for piece, row in reference.logits(script, hidden).items()}
            if golden:
                golden.add_logits(wanted)
            for engine in engines:
                head = engine.layers.logits(hidden)
                result = compare_logits(head, wanted, engine.dtype, engine.layers.name, chain_ties=ties)
                if golden and engine.layers.dtype == "bf16":
                    golden.add_measured(chain_relative(head, wanted))
                outcome.results.append(_with_tensors(result, engine, checkpoint))
            stage.advance()
    outcome.seconds = time.monotonic() - began
    outcome.peak_rss = peak_rss()
    return outcome


class Opened:
    """The engines of a bundle: of ONNX Runtime one for each lowering, of cuda one in fp32 and one as stored."""

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        checkpoint: Checkpoint,
        lowerings: Sequence[str],
        script: Script,
        memory: int = KEPT,
    ) -> None:
        self._memory = memory
        self._bundle, self._manifest, self._checkpoint = bundle, manifest, checkpoint
        self._lowerings, self._script = lowerings, script
        self._sources: list[Sources] = []
        self._engines: list[_Engine] = []

    def __enter__(self) -> list[_Engine]:
        bundle, manifest = self._bundle, self._manifest
        if manifest.cuda is not None:
            from mm2c.verify.program_layers import ProgramLayers

            weights = [bundle / rank.weights for rank in manifest.cuda.ranks]
            kv = manifest.cuda.ranks[0].kv.dtype
            for wide in (True, False):
                self._add(
                    weights, kv, partial(ProgramLayers, bundle, manifest, wide=wide, memory=self._memory)
                )
        else:
            from mm2c.verify.session_layers import SessionLayers

            for name in self._lowerings:
                weights = [bundle / rank.weights for rank in manifest.lowerings[name].ranks]
                self._add(weights, "f32", partial(SessionLayers, bundle, manifest, name))
        return self._engines

    def _add(
        self, weights: list[Path], kv: str, make: Callable[[Sequence[TensorSource], Script], LayerEngine]
    ) -> None:
        sources = Sources(weights, self._checkpoint)
        self._sources.append(sources)
        layers = make(sources.ranks, self._script)
        self._engines.append(_Engine(layers, engine_dtype(layers.dtype, kv), weights, sources.ranks))

    def __exit__(self, *error: object) -> None:
        for engine in self._engines:
            engine.layers.close()
        for sources in self._sources:
            sources.__exit__(None, None, None)


def _embedding(engine: _Engine, hidden: list[Any], checkpoint: Checkpoint) -> LayerResult:
    output = engine.layers.embed()
    nothing = [h - h for h in hidden]
    found = compare_hidden(output.chain, hidden, nothing, None, engine.dtype)
    result = LayerResult(
        engine.layers.name,
        engine.dtype,
        "embedding",
        found.error,
        found.allowed,
        found.scale,
        found.error,
        found.tokens,
        ranks=found.ranks,
    )
    return _with_tensors(result, engine, checkpoint)


def _layer(
    engine: _Engine, number: int, output: LayerOutput, hidden: list[Any], run: Any, checkpoint: Checkpoint
) -> LayerResult:
    fed = compare_hidden(output.fed, run.hidden, hidden, run.margin, engine.dtype)
    chain = compare_hidden(output.chain, run.hidden, hidden, None, engine.dtype)
    middle = [before + added for before, added in zip(hidden, run.attention, strict=True)]
    attention = compare_hidden(output.attention, middle, hidden, None, engine.dtype)
    part = "" if fed.error <= fed.allowed else "experts"
    ranks, error, allowed = fed.ranks, fed.error, fed.allowed
    if not attention.error <= attention.allowed:  # whatever the experts made of it
        part, ranks = "attention", attention.ranks
        if error <= allowed:
            error, allowed = attention.error, attention.allowed
    result = LayerResult(
        engine.layers.name,
        engine.dtype,
        str(number),
        error,
        allowed,
        fed.scale,
        chain.error,
        fed.tokens,
        fed.ties,
        ranks=ranks,
        part=part,
    )
    return _with_tensors(result, engine, checkpoint)


def _with_tensors(result: LayerResult, engine: _Engine, checkpoint: Checkpoint) -> LayerResult:
    """A failed result with the tensors that are at fault."""
    if result.passed:
        return result
    return replace(result, tensors=faulty_tensors(engine.weights, engine.sources, checkpoint, result.layer))
