"""Decode steps and prefills of a whole rank of M2.7 at tp 4, beside the memory's floor and torch's own layer."""

from __future__ import annotations

import statistics
from pathlib import Path

import peers
import torch
from bench_kernels import Machine
from report import Report, Skip
from slice_model import SliceModel, Step

CONTEXT = 4096
DECODE = (1, 8, 32, 64, 128, 256)
PREFILL = (512, 1024, 2048, 4096, 8192)
NEEDS = 90 << 30  # bytes: 57 GB of weights, and the caches of some rows
WAYS = {  # transformers' way of running experts, and whether under torch.compile
    "eager": ("eager", False),
    "compiled": ("eager", True),
    "grouped_mm": ("grouped_mm", False),
    "compiled grouped_mm": ("grouped_mm", True),
}
TARGET_1, TARGET_64, TARGET_EAGER = 1.6e-3, 1.4, 10.0


def bench_slice(report: Report, machine: Machine, program: Path) -> float | None:
    """Returns the seconds of a decode step at one row."""
    if not program.is_file():
        raise Skip(f"{program} is not there: `make gpu-files` writes it")
    if torch.cuda.get_device_properties(0).total_memory < NEEDS:
        raise Skip("a rank of M2.7 takes 57 GB of weights: this GPU is too small")
    model = SliceModel.random(program, machine.library)
    report.add("slice", "weights on the device", "measured", f"{model.weight_bytes / 1e9:.1f} GB",
               bytes=model.weight_bytes)  # fmt: skip
    for rows in PREFILL:
        if report.left > 60:
            _prefill(report, machine, model, rows)
    found = None
    for rows in DECODE:
        if report.left < 30 or not _fits(model, rows):
            report.add("slice", f"decode B={rows}", "skipped", "no time or memory is left for it")
            continue
        seconds = _decode(report, machine, model, rows)
        found = seconds if rows == 1 else found
    if found is not None and report.left > 20:
        _dependent(report, machine, model, found)
    return found


def _dependent(report: Report, machine: Machine, model: SliceModel, before: float) -> None:
    """The step of one row with programmatic dependent launches, which engines leave off until this has shown that
    they gain something: the same bits, and in what time."""
    step = model.step([CONTEXT - 1], 1)
    step()
    assert step.logits is not None
    expected = step.logits.clone()
    machine.library.set_pdl(True)
    try:
        time = machine.clock.graph(step, 11)
    finally:
        machine.library.set_pdl(False)
    different = float((step.logits != expected).sum())
    report.check("slice", "decode B=1 with dependent launches: logits that differ", different, 0.0)
    text = f"{time.median * 1e3:.2f} ms, {before / time.median:.2f}x as fast as without"
    report.add("slice", "decode B=1 with dependent launches", "measured", text, seconds=time.median)


def _fits(model: SliceModel, rows: int) -> bool:
    needed = rows * (CONTEXT + 64) * model.program.kv.bytes_per_token
    have = sum(cache.numel() * cache.element_size() for cache in model.caches)
    free, _ = torch.cuda.mem_get_info()
    return needed < free + have - (6 << 30)


def _decode(report: Report, machine: Machine, model: SliceModel, rows: int) -> float:
    step = model.step([CONTEXT - 1] * rows, 1)
    experts = step.experts()
    _check_finite(report, step, f"decode B={rows}")
    floor = step.bytes(experts) / machine.copy
    time = machine.clock.graph(step, 11)
    mean = statistics.mean(experts)
    text = (
        f"{time.median * 1e3:.2f} ms, {rows / time.median:.0f} tok/s, floor {floor * 1e3:.2f} ms "
        f"({floor / time.median:.0%}), {mean:.1f} experts a layer, no all-reduce"
    )
    figures = {
        "seconds": time.median,
        "floor": floor,
        "experts": experts,
        "tokens_per_second": rows / time.median,
    }
    name = f"decode B={rows} at {CONTEXT // 1024} k"
    if rows == 1:
        report.target("slice", name, time.median, TARGET_1, text, least=False, **figures)
    elif rows == 64:
        report.target("slice", name, time.median / floor, TARGET_64, text, least=False, **figures)
    else:
        report.add("slice", name, "measured", text, **figures)
    return time.median


def _prefill(report: Report, machine: Machine, model: SliceModel, tokens: int) -> None:
    step = model.step([0], tokens)
    step()
    _check_finite(report, step, f"prefill {tokens}")
    time = machine.clock.eager(step, 5)
    replay = machine.clock.graph(step, 5)
    text = (
        f"{time.median * 1e3:.1f} ms, {tokens / time.median:.0f} tok/s "
        f"(as a graph {replay.median * 1e3:.1f} ms), no all-reduce"
    )
    report.add(
        "slice", f"prefill {tokens}", "measured", text, seconds=time.median, graph_seconds=replay.median
    )


def _check_finite(report: Report, step: Step, name: str) -> None:
    logits = step.logits
    assert logits is not None
    bad = float((~torch.isfinite(logits)).sum()) + float(logits.std() == 0)
    report.check("slice", f"{name}: logits are finite and differ", bad, 0.0)


def bench_peers(report: Report, machine: Machine, step: float | None, layers: int = 62) -> None:
    """One decoder layer: ours is the whole step, head and embedding included, over its layers."""
    for batch in (1, 64):
        for name, (experts, compiled) in WAYS.items():
            if report.left < 40:
                report.add("peers", f"torch {name} B={batch}", "skipped", "no time is left for it")
                continue
            layer = peers.decoder_layer(experts=experts)
            try:
                run = peers.decode(layer, batch, CONTEXT, compiled=compiled)
                time = machine.clock.eager(run, 11)
            except Exception as error:  # a peer that cannot run is told, and is no failure of ours
                report.add(
                    "peers", f"torch {name} B={batch}", "skipped", f"{type(error).__name__}: {error}"[:160]
                )
                continue
            text, ours = f"{time.median * 1e6:.0f} us a layer", step / layers if step and batch == 1 else None
            if ours is None:
                report.add("peers", f"torch {name} B={batch}", "measured", text, seconds=time.median)
                continue
            ratio = time.median / ours
            text += f", {ratio:.1f}x ours ({ours * 1e6:.0f} us)"
            if name == "eager":
                report.target(
                    "peers", f"torch {name} B=1", ratio, TARGET_EAGER, text, least=True, seconds=time.median
                )
            else:
                report.add("peers", f"torch {name} B=1", "measured", text, seconds=time.median, ratio=ratio)
