"""What the executor must know of a rank whose model is plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mm2c_runtime.executors.cuda.program import Head, Kv

if TYPE_CHECKING:
    from mm2c_runtime.manifest import Manifest
    from mm2c_runtime.manifest_tensorrt import TensorRTProgram


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """As ``executors.cuda.rank_model.RankFacts``."""

    kv: Kv
    vocab: int
    logits: Literal["last", "all"]
    context: int
    max_rows: int
    prefill_chunk: int
    head: Head | None
    most_pages: int | None = None
    together: bool = False

    @property
    def columns(self) -> int:
        return self.vocab if self.head is None else self.head.width


def facts_of(manifest: Manifest, program: TensorRTProgram, rank: int, *, most_pages: int | None) -> PlanFacts:
    kv, limits, vocab = program.kv, manifest.limits, manifest.model.vocab
    head = None
    if program.head == "candidates":
        width = -(-vocab // manifest.mapping.tp)
        first = rank * width
        head = Head(first, min(width, vocab - first), width)
    return PlanFacts(
        Kv(kv.dtype, kv.page, kv.layers, kv.kv_heads, kv.head_dim),
        vocab,
        manifest.logits,
        limits.context,
        limits.max_rows,
        limits.prefill_chunk,
        head,
        most_pages,
    )
