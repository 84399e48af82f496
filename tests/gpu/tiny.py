"""The trained demo checkpoint end to end: the engine's greedy tokens beside those of the CPU engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from environment import BUILD
from report import Report, Skip

from mm2c_runtime.executors.cuda.executor import CudaExecutor
from mm2c_runtime.page_pool import PagePool
from mm2c_runtime.scheduling.scheduler import Scheduler
from mm2c_runtime.scheduling.sequence import Sequence as Request
from mm2c_runtime.step import SamplingParams

FILES = BUILD / "gpu"


def check_tiny(report: Report, ops: Any = None, device: str = "cuda:0") -> None:
    """``ops`` and ``device`` replace the kernels, to try this file without a GPU."""
    golden_file = FILES / "golden.json"
    if not golden_file.is_file():
        raise Skip(f"{golden_file} is not there: `make gpu-files` writes it")
    golden = json.loads(golden_file.read_text(encoding="utf-8"))
    for name in ("tiny-bf16", "tiny-fp8-kv"):
        executor = load(FILES / name, ops=ops, device=device)
        try:
            for together in (1, len(golden["prompts"])):
                found = generate(executor, golden["prompts"], golden["count"], together=together)
                wrong = sum(a != b for a, b in zip(found, golden["tokens"], strict=True))
                label = f"{name}, {together} at a time: answers that differ"
                if name == "tiny-bf16":
                    report.check("tiny", label, float(wrong), 0.0, found=found)
                else:  # its keys and values are rounded to 3 bits: near ties may fall the other way
                    report.add("tiny", label, "measured", f"{wrong} of {len(found)}", found=found)
            drawn = [
                generate(executor, golden["prompts"][:4], 16, together=n, sampling=_warm) for n in (1, 4)
            ]
            report.check(
                "tiny", f"{name}: seeded draws, alone and together", float(drawn[0] != drawn[1]), 0.0
            )
        finally:
            executor.close()


def _warm(place: int) -> SamplingParams:
    return SamplingParams(temperature=0.8, top_k=20, top_p=0.95, seed=place)


def load(folder: Path, *, ops: Any = None, device: str = "cuda:0", **options: Any) -> CudaExecutor:
    """The executor of a bundle whose manifest is read as plain values: pydantic need not be here."""
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    manifest = json.loads(text, object_hook=lambda value: SimpleNamespace(**value))
    mapping = manifest.mapping  # with what the manifest's own class derives
    mapping.attention_dp = max(mapping.ep // mapping.tp, 1)
    mapping.ranks = mapping.tp * mapping.attention_dp
    mapping.replicas = mapping.dp // mapping.attention_dp
    mapping.tp_groups = [
        tuple(range(first, first + mapping.tp)) for first in range(0, mapping.ranks, mapping.tp)
    ]
    return CudaExecutor(folder, manifest, ops=ops, device=device, **options)  # type: ignore[arg-type]


def generate(
    executor: Any, prompts: Sequence[Sequence[int]], count: int, *, together: int, sampling: Any = None
) -> list[list[int]]:
    """``count`` tokens for each prompt, ``together`` of them running at once; greedy without ``sampling``."""
    limits, kv = executor.limits, executor.kv
    pool = PagePool(min(together, limits.max_rows), limits.context, kv.pages, kv.page)
    scheduler = Scheduler(pool, prefill_chunk=limits.prefill_chunk)
    requests = []
    for place, prompt in enumerate(prompts):
        params = sampling(place) if sampling else SamplingParams(temperature=0.0)
        requests.append(Request(str(place), list(prompt), count, sampling=params))
        scheduler.add(requests[-1])
    while (batch := scheduler.next_batch()) is not None:
        for outcome in scheduler.apply(executor.step(batch)):
            if outcome.error:
                raise RuntimeError(f"request {outcome.sequence.id}: {outcome.error}")
    return [request.generated for request in requests]
