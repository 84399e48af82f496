"""``report/memory.json`` and its picture: what each rank will hold, to read before a GPU is rented."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mm2c.config import BuildOptions, WeightFormats
from mm2c.memory import MemoryPlan
from mm2c.plan.engines import gpu_note
from mm2c.plan.gpus import USUAL, Gpu, find_gpu, gpu_of_size
from mm2c.plan.layouts import name
from mm2c.plan.picture import bar_of_rank, cache_words, draw_memory
from mm2c.plan.room import Room, room_on
from mm2c.plan.sizes import gib, parse_size, tokens

HOST_NEEDS = ("weights_bytes", "kv_bytes", "kv_bytes_per_token", "activations_bytes", "total_bytes")


def write_memory(
    stage: Path, plan: MemoryPlan, options: BuildOptions, host: dict[str, Any] | None
) -> dict[str, Any]:
    """Write both and return the report. ``plan``: ranks on GPUs; ``host``: what ONNX Runtime needs on a CPU, None
    where it was not planned. What this machine has is left out: the same build is the same bundle on every
    machine."""
    cpu = {name: host[name] for name in HOST_NEEDS} if host else None
    report = {"gpu": gpu_report(plan, options), "cpu": cpu}
    folder = stage / "report"
    folder.mkdir(exist_ok=True)
    (folder / "memory.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (folder / "memory.svg").write_text(_picture(plan, options), encoding="utf-8")
    return report


def gpu_report(plan: MemoryPlan, options: BuildOptions) -> dict[str, Any]:
    """Bytes of every rank by part, and the tokens of KV cache that all GPUs hold together on usual kinds."""
    first, dp = plan.ranks[0], options.mapping.dp
    cards = [find_gpu(kind) for kind in USUAL if not _lacking(find_gpu(kind), options)]
    capacity = {card.name: dp * _room(card, plan, options).tokens for card in cards}
    shown = ", ".join(f"{tokens(held)} on {kind}" for kind, held in capacity.items() if held) or "none"
    gpus = options.mapping.gpus
    return {
        "summary": f"each of {gpus} GPU(s): weights {first.weights.total / 1e9:.2f} GB, steps "
        f"{(first.step + first.buffers) / 1e9:.2f} GB, KV cache {first.kv_per_token} bytes a token; "
        f"tokens of cache in all: {shown}",
        "ranks": [
            {
                "rank": rank.rank,
                "weights_bytes": rank.weights.total,
                "weights": asdict(rank.weights),
                "activations_bytes": rank.activations,
                "workspace_bytes": rank.workspace,
                "buffers_bytes": rank.buffers,
                "kv_bytes_per_token": rank.kv_per_token,
                "kv_bytes": plan.tokens * rank.kv_per_token,
            }
            for rank in plan.ranks
        ],
        "tokens": plan.tokens,
        "replicas": plan.replicas,
        "kv_capacity_tokens": capacity,
    }


def find_card(asked: str) -> Gpu:
    """The GPU that a build is for: a kind by name, or a size. Raises UserError."""
    return gpu_of_size(parse_size(asked, "--gpu"), asked) if asked[:1].isdigit() else find_gpu(asked)


def card_note(card: Gpu, plan: MemoryPlan, options: BuildOptions) -> str:
    """Whether the ranks fit GPUs of kind ``card``, in a sentence with the figures."""
    if lacking := _lacking(card, options):
        return lacking
    room = _room(card, plan, options)
    where = f"{options.mapping.gpus} × {card.title} ({gib(card.memory)} each)"
    if not room.tokens:
        return (
            f"does not fit {where}: weights of {gib(room.rank.weights.total)}, with steps and reserve "
            f"{gib(-room.free)} too much; `mm2c plan` says what would fit"
        )
    rows = room.tokens // (plan.tokens // options.max_rows)
    full = f"{rows} of {options.max_rows} rows" if rows < options.max_rows else "all rows"
    held = tokens(options.mapping.dp * room.tokens)
    text = f"{where} hold {held} tokens of cache: {full} of {options.context} tokens"
    return text + ("" if rows else ": not one request of that length fits; `mm2c plan` says what would")


def _lacking(card: Gpu, options: BuildOptions) -> str:
    """Why the engine cannot serve on ``card``, of those that do not know every GPU; nothing where it can."""
    if options.engine != "tensorrt-rtx":
        return ""
    fp8 = frozenset() if options.format == "bf16" else frozenset({"experts"})
    return gpu_note(card, options.engine, WeightFormats(fp8))


def _room(card: Gpu, plan: MemoryPlan, options: BuildOptions) -> Room:
    rows, engine = options.max_rows, options.engine
    rooms = (room_on(card.memory, rank, options.mapping, rows, engine) for rank in plan.ranks)
    return min(rooms, key=lambda room: room.free)


def _picture(plan: MemoryPlan, options: BuildOptions) -> str:
    """The ranks with every row full."""
    replicas = f", one of {plan.replicas} replicas" if plan.replicas > 1 else ""
    words = cache_words(plan.tokens, plan.ranks[0].kv_per_token)
    return draw_memory(
        [bar_of_rank(rank, plan.tokens) for rank in plan.ranks],
        f"Memory of each GPU: {name(options.mapping)}{replicas}",
        f"{words}: {options.max_rows} rows of {options.context:,} tokens",
    )
