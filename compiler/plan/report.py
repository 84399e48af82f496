"""A plan as one JSON document: bytes and tokens, never rounded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mm2c.config import Mapping
from mm2c.plan.advice import remedies, shortage
from mm2c.plan.ask import Ask
from mm2c.plan.choice import Considered, Plan
from mm2c.plan.compare import Comparison, base_of
from mm2c.plan.engines import engine_notes, gpu_note
from mm2c.plan.fit import Fit
from mm2c.plan.gpus import Gpu
from mm2c.plan.guide import KV_GB_PER_MILLION, WEIGHTS_GB
from mm2c.plan.layouts import flags, words
from mm2c.plan.room import Room
from mm2c.plan.speed import DecodeStep

CONTEXTS = (4096, 16384, 32768, 65536, 131072)  # tokens a request, of the table of what fits


def plan_json(plan: Plan, title: str) -> dict[str, Any]:
    """Everything that the tables show. ``kv_capacity_tokens``: of all GPUs together; each entry of ``per_gpu`` has
    its own: tokens whose share of the heads it can hold."""
    own = plan.best
    return {
        "model": model_json(plan.ask, title),
        "asked": asked_json(plan.ask),
        "gpu": gpu_json(plan.gpu, plan.ask),
        "notes": list(engine_notes(plan.ask)),
        "gpus": own.mapping.gpus,
        "layout": layout_json(own.mapping) | {"given": plan.given, "why": plan.why},
        "fits": plan.fits,
        "short_bytes": own.short,
        "shortage": shortage(plan),
        "remedies": remedies(plan),
        "kv_capacity_tokens": own.kv_capacity_tokens,
        "kv_capacity_tokens_per_replica": own.replica_tokens,
        "kv_bytes_per_token": own.memory.kv_per_token,
        "per_gpu": [
            {"gpu": replica * own.mapping.ranks + room.rank.rank, "replica": replica} | room_json(room)
            for replica in range(own.memory.replicas)
            for room in own.rooms
        ],
        "rows_per_group": own.rows,
        "what_fits": [
            {"context": length, "requests": own.requests_of(length)} for length in contexts(plan.ask)
        ],
        "decode_step": step_json(plan.step),
        "considered": [considered_json(one) for one in plan.considered],
    }


def model_json(ask: Ask, title: str) -> dict[str, Any]:
    base = base_of(ask)
    return {
        "source": title,
        "layers": ask.config.layers,
        "experts": ask.config.experts,
        "context": ask.config.context,
        "weights_bytes": base.weights.total,
        "weights": asdict(base.weights),
        "kv_bytes_per_token": base.kv_per_token,
    }


def asked_json(ask: Ask) -> dict[str, Any]:
    return {
        "context": ask.context,
        "batch": ask.batch or None,
        "prefill_chunk": ask.chunk,
        "kv_dtype": ask.kv_dtype,
        "fp8_modules": len(ask.formats.fp8),
        "engine": ask.engine,
    }


def gpu_json(gpu: Gpu, ask: Ask) -> dict[str, Any]:
    return {
        "name": gpu.name,
        "title": gpu.title,
        "vendor": gpu.vendor if gpu.known else None,
        "memory_bytes": gpu.memory,
        "bandwidth_bytes_per_s": gpu.bandwidth,
        "link_bytes_per_s": gpu.link,
        "speeds_assumed": not gpu.known,
        "note": gpu_note(gpu, ask.engine, ask.formats),
    }


def layout_json(mapping: Mapping) -> dict[str, Any]:
    return {
        "tp": mapping.tp,
        "ep": mapping.ep,
        "dp": mapping.dp,
        "replicas": mapping.replicas,
        "ranks": mapping.ranks,
        "attention_dp": mapping.attention_dp,
        "flags": flags(mapping),
        "means": words(mapping),
    }


def room_json(room: Room) -> dict[str, Any]:
    """One GPU; all but ``kv_bytes_per_token`` and ``kv_capacity_tokens`` adds up to its memory."""
    return {
        "rank": room.rank.rank,
        "memory_bytes": room.memory,
        "weights_bytes": room.rank.weights.total,
        "weights": asdict(room.rank.weights),
        "activations_bytes": room.rank.activations,
        "workspace_bytes": room.rank.workspace,
        "buffers_bytes": room.rank.buffers,
        "reserve_bytes": room.reserve,
        "system_bytes": room.system,
        "collectives_bytes": room.collectives,
        "free_bytes": room.free,
        "kv_bytes_per_token": room.rank.kv_per_token,
        "kv_capacity_tokens": room.tokens,
    }


def step_json(step: DecodeStep) -> dict[str, Any]:
    return {
        "rows": step.rows,
        "tokens_a_row": step.tokens_a_row,
        "read_bytes": step.read,
        "messages": step.messages,
        "sent_bytes": step.sent,
        "memory_ms": round(step.memory_seconds * 1e3, 4),
        "messages_ms": round(step.message_seconds * 1e3, 4),
    }


def considered_json(one: Considered) -> dict[str, Any]:
    found: dict[str, Any] = {"flags": flags(one.mapping), "verdict": one.verdict, "why": one.why}
    if one.fit is not None:
        found |= {"kv_capacity_tokens": one.fit.kv_capacity_tokens, "short_bytes": one.fit.short}
    if one.step is not None:
        found["decode_step"] = step_json(one.step)
    return found


def contexts(ask: Ask) -> list[int]:
    """Lengths of requests to show, up to the context that was asked for."""
    return [length for length in CONTEXTS if length < ask.context] + [ask.context]


def guide_json(ask: Ask, title: str, found: tuple[Comparison, ...]) -> dict[str, Any]:
    return {
        "model": model_json(ask, title),
        "asked": asked_json(ask),
        "guide": {"weights_gb": WEIGHTS_GB, "kv_gb_per_million_tokens": KV_GB_PER_MILLION},
        "rows": [_comparison_json(one) for one in found],
    }


def _comparison_json(one: Comparison) -> dict[str, Any]:
    own: Fit = one.ours
    return {
        "configuration": one.row.title,
        "gpu": own.gpu.name,
        "layout": layout_json(own.mapping),
        "guide_tokens": one.row.tokens or None,
        "guide_supports_it": not one.refused,
        "kv_capacity_tokens": own.kv_capacity_tokens,
        "kv_capacity_tokens_fp8": one.fp8,
        "fits": own.fits,
        "ratio": round(one.ratio, 4) if one.ratio else None,
        "remark": one.remark,
        "arithmetic": [{"what": term.what, "tokens": round(term.tokens)} for term in one.terms],
    }
