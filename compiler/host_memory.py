"""Whether this machine can hold what the ONNX Runtime engine needs: every rank in one process, all of it in f32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm2c.config import BuildOptions, ModelConfig, WeightFormats
from mm2c.errors import UserError
from mm2c.memory import plan_memory


def host_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's if that is less."""
    limits = list(_host_limits())
    return min(limits) if limits else 0


def _host_limits() -> Iterator[int]:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            yield int(line.split()[1]) * 1024
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(name)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            yield int(text)


def check_host_memory(
    config: ModelConfig, options: BuildOptions, available: int | None = None
) -> dict[str, Any]:
    """What the ONNX Runtime engine needs on the CPU, all ranks in one process, everything in f32.

    Raises UserError with the figures where this machine (``available`` bytes: its memory) cannot hold it.
    """
    available = host_memory() if available is None else available
    plan = plan_memory(
        config,
        WeightFormats(),
        options.mapping,
        context=options.context,
        rows=options.max_rows,
        chunk=options.prefill_chunk,
        weight_dtype="f32",
        kv_dtype="f32",
        activation_dtype="f32",
        attention_scores=True,
    )
    weights = sum(rank.weights.total for rank in plan.ranks)
    activations = plan.ranks[0].activations  # ranks take turns
    cache = plan.tokens * plan.kv_per_token
    need = weights + cache + activations
    has = f"this machine has {available / 1e9:.0f} GB"
    if weights >= available:
        raise UserError(
            f"the model does not fit: on the CPU its weights take {weights / 1e9:.0f} GB in fp32, {has}",
            where="this machine's memory",
            remedy="--engine cuda builds it for GPUs, here too; or a machine with more memory, or a smaller "
            "checkpoint; --config-only writes the graphs and the memory plan of every rank without weights",
        )
    if weights + activations > available:
        raise UserError(
            f"a step does not fit: {options.max_rows} rows and chunks of {options.prefill_chunk} tokens with a "
            f"context of {options.context} take {activations / 1e9:.1f} GB beside {weights / 1e9:.1f} GB of "
            f"weights, {has}",
            where="--max-rows, --prefill-chunk, --context",
            remedy="make the largest of them smaller",
        )
    if need > available:
        room = (available - weights - activations) // plan.kv_per_token // options.max_rows
        raise UserError(
            f"the KV cache does not fit: {options.max_rows} rows of {plan.tokens // options.max_rows} tokens "
            f"take {cache / 1e9:.0f} GB beside {weights / 1e9:.0f} GB of weights, {has}",
            where="--context, --max-rows",
            remedy=(f"--context {room} fits with {options.max_rows} rows; or " if room else "")
            + "take fewer rows with --max-rows",
        )
    return {
        "summary": f"{need / 1e9:.2f} GB in fp32: weights {weights / 1e9:.2f}, KV cache {cache / 1e9:.2f} "
        f"({plan.tokens} tokens), activations {activations / 1e9:.2f}; {has}",
        "weights_bytes": weights,
        "kv_bytes": cache,
        "kv_bytes_per_token": plan.kv_per_token,
        "kv_capacity_tokens": max(0, available - weights - activations) // plan.kv_per_token,
        "activations_bytes": activations,
        "total_bytes": need,
        "available_bytes": available,
    }
