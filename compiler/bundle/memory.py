"""``report/memory.json``: what each rank will hold, to read before a GPU is rented."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mm2c.memory import MemoryPlan

CARDS = {"80 GB": 80 * 10**9, "96 GiB": 96 << 30, "141 GB": 141 * 10**9}
HOST_NEEDS = ("weights_bytes", "kv_bytes", "kv_bytes_per_token", "activations_bytes", "total_bytes")
SHARE = 0.9  # of a card; the rest is left to the driver, the CUDA context and the server


def write_memory(stage: Path, plan: MemoryPlan, host: dict[str, Any] | None) -> dict[str, Any]:
    """Write and return the report. ``plan``: ranks on GPUs (weights as stored, cache and activations bf16);
    ``host``: the same for ONNX Runtime on a CPU, None where it was not planned. What this machine has is left
    out: the same build is the same bundle on every machine."""
    cpu = {name: host[name] for name in HOST_NEEDS} if host else None
    report = {"gpu": gpu_report(plan), "cpu": cpu}
    path = stage / "report" / "memory.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def gpu_report(plan: MemoryPlan) -> dict[str, Any]:
    """Bytes of every rank by part, and the tokens of KV cache that all ranks hold together on usual cards."""
    first = plan.ranks[0]
    capacity = {name: plan.kv_capacity_tokens(int(size * SHARE)) for name, size in CARDS.items()}
    shown = ", ".join(f"{tokens} on {name}" for name, tokens in capacity.items() if tokens) or "none"
    return {
        "summary": f"a GPU of {len(plan.ranks)}: weights {first.weights.total / 1e9:.2f} GB, activations "
        f"{first.activations / 1e9:.2f} GB, KV cache {first.kv_per_token} bytes a token; "
        f"tokens of cache: {shown}",
        "ranks": [
            {
                "rank": rank.rank,
                "weights_bytes": rank.weights.total,
                "weights": asdict(rank.weights),
                "activations_bytes": rank.activations,
                "kv_bytes_per_token": rank.kv_per_token,
                "kv_bytes": plan.tokens * rank.kv_per_token,
            }
            for rank in plan.ranks
        ],
        "tokens": plan.tokens,
        "kv_capacity_tokens": capacity,
        "card_share": SHARE,
    }
