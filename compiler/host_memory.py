"""Whether this machine can hold what the ONNX Runtime engine needs: every rank in one process, all of it in f32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm2c.config import BuildOptions, ModelConfig, WeightFormats
from mm2c.errors import UserError
from mm2c.memory import plan_memory


@dataclass(frozen=True)
class HostNeeds:
    """Bytes on the CPU, of all ranks of a replica in one process. ``kv_per_token``: of one attention group;
    ``rows`` and ``row_tokens``: of each of the ``groups``."""

    weights: int
    activations: int
    kv_per_token: int
    rows: int
    row_tokens: int
    groups: int = 1

    @property
    def tokens(self) -> int:
        """Of cache, every row of every group full."""
        return self.groups * self.rows * self.row_tokens

    @property
    def cache(self) -> int:
        return self.tokens * self.kv_per_token

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations

    def kv_capacity(self, available: int) -> int:
        """Tokens of cache beside weights and a step."""
        return max(0, available - self.weights - self.activations) // self.kv_per_token


def host_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's if that is less."""
    limits = list(_host_limits())
    return min(limits) if limits else 0


def peak_rss() -> int:
    """The most bytes that this process has had in memory. (Not getrusage's figure, which a process takes over from
    the one that started it.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _host_limits() -> Iterator[int]:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            yield int(line.split()[1]) * 1024
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(name)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            yield int(text)


def host_needs(config: ModelConfig, options: BuildOptions) -> HostNeeds:
    """What the ONNX Runtime engine needs on the CPU, all ranks in one process, everything in f32."""
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
    return HostNeeds(
        weights=sum(rank.weights.total for rank in plan.ranks),
        activations=plan.ranks[0].activations,  # ranks take turns
        kv_per_token=plan.kv_per_token,
        rows=options.max_rows,
        row_tokens=plan.tokens // options.max_rows,
        groups=options.mapping.attention_dp,
    )


def check_host_memory(
    config: ModelConfig, options: BuildOptions, available: int | None = None
) -> dict[str, Any]:
    """The report of ``host_needs``.

    Raises UserError with the figures where this machine (``available`` bytes: its memory) cannot hold it.
    """
    available = host_memory() if available is None else available
    needs = host_needs(config, options)
    has = f"this machine has {available / 1e9:.0f} GB"
    if needs.weights >= available:
        raise UserError(
            f"the model does not fit: on the CPU its weights take {needs.weights / 1e9:.0f} GB in fp32, {has}",
            where="this machine's memory",
            remedy="--engine cuda builds it for GPUs, here too; or a machine with more memory, or a smaller "
            "checkpoint; --config-only writes the graphs and the memory plan of every rank without weights",
        )
    if needs.weights + needs.activations > available:
        raise UserError(
            f"a step does not fit: {needs.rows} rows and chunks of {options.prefill_chunk} tokens with a "
            f"context of {options.context} take {needs.activations / 1e9:.1f} GB beside "
            f"{needs.weights / 1e9:.1f} GB of weights, {has}",
            where="--max-rows, --prefill-chunk, --context",
            remedy="make the largest of them smaller",
        )
    if needs.total > available:
        room = needs.kv_capacity(available) // (needs.rows * needs.groups)
        groups = f"{needs.groups} groups of " if needs.groups > 1 else ""
        raise UserError(
            f"the KV cache does not fit: {groups}{needs.rows} rows of {needs.row_tokens} tokens take "
            f"{needs.cache / 1e9:.0f} GB beside {needs.weights / 1e9:.0f} GB of weights, {has}",
            where="--context, --max-rows",
            remedy=(f"--context {room} fits with {needs.rows} rows; or " if room else "")
            + "take fewer rows with --max-rows",
        )
    return host_report(needs, available)


def host_report(needs: HostNeeds, available: int) -> dict[str, Any]:
    """The needs in words and bytes, beside the ``available`` bytes of this machine."""
    return {
        "summary": f"{needs.total / 1e9:.2f} GB in fp32: weights {needs.weights / 1e9:.2f}, KV cache "
        f"{needs.cache / 1e9:.2f} ({needs.tokens} tokens), activations {needs.activations / 1e9:.2f}; "
        f"this machine has {available / 1e9:.0f} GB",
        "weights_bytes": needs.weights,
        "kv_bytes": needs.cache,
        "kv_bytes_per_token": needs.kv_per_token,
        "kv_capacity_tokens": needs.kv_capacity(available),
        "activations_bytes": needs.activations,
        "total_bytes": needs.total,
        "available_bytes": available,
    }
