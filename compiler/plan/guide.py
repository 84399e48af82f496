"""vLLM's usage guide for the MiniMax-M2 series: the configurations that it names, with its figures as it gives them.

Nothing here enters a plan. compare.py puts our own figures beside these.
"""

from __future__ import annotations

from dataclasses import dataclass

from mm2c.config import Mapping

WEIGHTS_GB = 220  # "220 GB for weights"
KV_GB_PER_MILLION = 240  # "240 GB per 1M context tokens"
SHARE = 0.9  # of a GPU that vLLM takes unless --gpu-memory-utilization says otherwise


@dataclass(frozen=True)
class Row:
    """``gpus`` × ``size`` GB as the guide writes them, the GPUs that this can mean, and the ``layouts`` that it
    launches there. ``tokens``: of KV cache in all, 0 where the guide gives none; it names the GPUs then, without
    their size. ``share``: of each GPU's memory. ``refused``: layouts that the guide says are not supported."""

    gpus: int
    size: int
    cards: tuple[str, ...]
    layouts: tuple[Mapping, ...]
    tokens: int = 0
    share: float = SHARE
    refused: tuple[Mapping, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.gpus} × {self.size} GB"


_TP2, _TP4, _TP8 = Mapping(2), Mapping(4), Mapping(8)
_TP4_EP4, _TP8_EP8, _DP8_EP8 = Mapping(4, 4), Mapping(8, 8), Mapping(1, 8, 8)

ROWS: tuple[Row, ...] = (
    Row(4, 96, ("rtx-pro-6000", "h20"), (_TP4, _TP4_EP4), 400_000),
    Row(8, 144, ("h200",), (_TP8_EP8, _DP8_EP8), 3_000_000, refused=(_TP8,)),
    Row(2, 192, ("mi300x",), (_TP2,), 500_000),
    Row(4, 192, ("mi300x",), (_TP4,), 1_500_000),
    Row(2, 288, ("mi355x",), (_TP2,), 1_500_000),
    Row(4, 288, ("mi355x",), (_TP4,), 4_000_000),
    Row(2, 180, ("b200",), (_TP2,), share=0.95),
    Row(4, 141, ("h200",), (_TP4,)),
    Row(4, 80, ("a100", "a800"), (_TP4,)),
)
