"""What quantising a dense checkpoint costs in accuracy: the error of every linear, by layer and kind of tensor."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from mm2c.checkpoint.names import Linear, attention_linears, expert_linears
from mm2c.checkpoint.reader import Checkpoint
from mm2c.config import BLOCK, ModelConfig
from mm2c.progress import Progress
from mm2c_runtime.weights.dtypes import widen
from mm2c_runtime.weights.evaluate import evaluate
from mm2c_runtime.weights.recipe import Dequantize, Quantize, QuantizeScale, Source

_BAND = 1 << 20  # elements that a thread holds at a time
_THREADS = 16
_PARTS = {"w1": "gate", "w3": "up", "w2": "down"}


@dataclass(frozen=True)
class TensorError:
    """Of one weight: Σ error², Σ weight², and the largest of either, of ``elements`` elements."""

    name: str
    squares: float
    energy: float
    largest: float
    peak: float
    elements: int

    @property
    def relative_rms(self) -> float:
        return math.sqrt(self.squares / self.energy) if self.energy else 0.0

    @property
    def in_parts_of_peak(self) -> float:
        return self.largest / self.peak if self.peak else 0.0


def quantization_report(
    checkpoint: Checkpoint, modules: Collection[str], progress: Progress
) -> dict[str, Any]:
    """The content of ``report/quantization.json``: per layer and kind of tensor (q_proj … o_proj, gate, up, down) and
    over all of them, ``relative_rms`` (of the error, in parts of the weights' RMS), ``sqnr_db``, ``largest_error``
    (in parts of the tensor's max |w|, of the tensor where it is largest) and the ``worst`` tensor by relative RMS.

    ``modules`` are those that are quantised. A tensor is read and converted in bands of whole blocks.
    """
    wanted, config = frozenset(modules), checkpoint.config
    layers, everything = [], []
    count = sum(1 for _ in _linears(config, range(config.layers), wanted))
    with (
        progress.stage("Measuring the quantisation error", count) as bar,
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads,
    ):
        for layer in range(config.layers):
            kinds: dict[str, list[TensorError]] = {}
            for linear, error in _measured(checkpoint, _linears(config, (layer,), wanted), threads):
                kinds.setdefault(_kind(linear), []).append(error)
                bar.advance()
            if kinds:
                layers.append({"layer": layer, **{kind: _summary(errors) for kind, errors in kinds.items()}})
            everything += [error for errors in kinds.values() for error in errors]
    return {"format": "e4m3", "block": [BLOCK, BLOCK], "total": _summary(everything), "layers": layers}


def summary_line(report: dict[str, Any]) -> str:
    """One line for the build report."""
    total = report["total"]
    if not total:
        return "nothing to quantise"
    quality = "exact" if total["sqnr_db"] is None else f"SQNR {total['sqnr_db']:.1f} dB"
    return (
        f"{total['tensors']} tensors in blocks of {BLOCK} x {BLOCK}: relative RMS error "
        f"{total['relative_rms']:.2%} ({quality}), at worst {total['worst_relative_rms']:.2%} in {total['worst']}"
    )


def _linears(config: ModelConfig, layers: Iterable[int], wanted: frozenset[str]) -> Iterator[Linear]:
    for layer in layers:
        for linear in (*attention_linears(config, layer), *expert_linears(config, layer)):
            if linear.module in wanted:
                yield linear


def _measured(
    checkpoint: Checkpoint, linears: Iterator[Linear], threads: ThreadPoolExecutor
) -> Iterator[tuple[Linear, TensorError]]:
    while some := list(islice(linears, 64)):
        yield from zip(some, threads.map(lambda linear: _error(checkpoint, linear), some), strict=True)


def _error(checkpoint: Checkpoint, linear: Linear) -> TensorError:
    rows, columns = linear.shape
    step = max(_BAND // (columns * BLOCK), 1) * BLOCK
    squares = energy = largest = peak = 0.0
    for start in range(0, rows, step):
        band = checkpoint.read_rows(linear.weight, start, min(start + step, rows))
        source = Source(linear.weight, "f32", band.shape)
        weight = widen(band)
        kept = evaluate(
            Dequantize(Quantize(source, BLOCK, BLOCK), QuantizeScale(source, BLOCK, BLOCK), BLOCK, BLOCK),
            _Band(weight),
        )
        error = np.subtract(kept, weight, out=kept).reshape(-1)
        flat = weight.reshape(-1)
        # in f64: squares of small weights of many elements would drown
        squares += float(np.einsum("i,i->", error, error, dtype=np.float64))
        energy += float(np.einsum("i,i->", flat, flat, dtype=np.float64))
        largest = max(largest, float(np.abs(error, out=error).max()))
        peak = max(peak, float(np.abs(flat).max()))
    return TensorError(linear.weight, squares, energy, largest, peak, rows * columns)


@dataclass(frozen=True)
class _Band:
    rows: np.ndarray[Any, Any]

    def read_rows(self, key: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        return self.rows[start:stop]


def _summary(errors: list[TensorError]) -> dict[str, Any]:
    """Empty where there is no tensor; ``sqnr_db`` None where there is no error."""
    if not errors:
        return {}
    squares, energy = sum(e.squares for e in errors), sum(e.energy for e in errors)
    worst = max(errors, key=lambda e: e.relative_rms)
    return {
        "tensors": len(errors),
        "elements": sum(e.elements for e in errors),
        "relative_rms": math.sqrt(squares / energy) if energy else 0.0,
        "sqnr_db": 10 * math.log10(energy / squares) if squares else None,
        "largest_error": max(e.in_parts_of_peak for e in errors),
        "worst": worst.name,
        "worst_relative_rms": worst.relative_rms,
    }


def _kind(linear: Linear) -> str:
    part = linear.weight.removesuffix(".weight").rpartition(".")[2]
    return _PARTS.get(part, part)
