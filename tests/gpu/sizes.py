"""M2's true sizes on one of four tensor-parallel ranks, and random data of them made on the device."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import torch

CODES = 254  # of e4m3 that are no NaN


@dataclass(frozen=True)
class Slice:
    """One rank of M2.7 at tp 4 (``experts`` are all of them, each cut in its intermediate width)."""

    layers: int = 62
    hidden: int = 3072
    heads: int = 12
    kv_heads: int = 2
    head_dim: int = 128
    rotary_dim: int = 64
    experts: int = 256
    top_k: int = 8
    intermediate: int = 384
    vocab: int = 50016  # 200064 / 4
    q_total: int = 6144
    k_total: int = 1024
    block: int = 128  # side of a scale block along the hidden width, and of attention's both sides
    inner_block: int = 128  # along the experts' intermediate width
    eps: float = 1e-6

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def sides(self) -> tuple[int, int]:
        """Of w13's scale blocks; w2's are the same turned."""
        return self.inner_block, self.block

    @property
    def expert_bytes(self) -> int:
        """Of one expert's three matrices, scales included."""
        elements = 3 * self.hidden * self.intermediate
        return elements + 4 * elements // (self.block * self.inner_block)

    @property
    def attention_bytes(self) -> int:
        """Of the fused q, k, v and of the output projection of a layer, scales included."""
        elements = self.hidden * (2 * self.q_width + 2 * self.kv_width)
        return elements + 4 * elements // self.block**2


# Both can be replaced, to try the proof itself on a machine without a GPU: sizes as JSON of Slice's fields
DEVICE = os.environ.get("MM2C_PROOF_DEVICE", "cuda")
M2 = Slice(**json.loads(os.environ.get("MM2C_PROOF_SIZES", "{}")))


def e4m3(*shape: int) -> torch.Tensor:
    """Every e4m3 code but the two NaNs, equally likely."""
    codes = torch.randint(0, CODES, shape, dtype=torch.uint8, device=DEVICE)
    codes += codes >= 127
    return codes.view(torch.float8_e4m3fn)


def _code_deviation() -> float:
    codes = torch.arange(256, dtype=torch.uint8)
    values = codes[(codes & 127) != 127].view(torch.float8_e4m3fn).double()
    return float(values.square().mean().sqrt())


CODE_DEVIATION = _code_deviation()


def scales(*shape: int, width: int) -> torch.Tensor:
    """f32 block scales that give weights a deviation of about 1 / sqrt(width)."""
    spread = torch.rand(shape, device=DEVICE) + 0.5
    return spread / (CODE_DEVIATION * width**0.5)


def fp8_weight(
    rows: int,
    columns: int,
    *,
    stack: int = 0,
    parts: int = 1,
    sides: tuple[int, int] = (M2.block, M2.block),
) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3[(stack,) rows, columns] and its scales; rows in ``parts`` parts with blocks of their own."""
    lead = (stack,) if stack else ()
    blocks = (*lead, parts * -(-rows // parts // sides[0]), -(-columns // sides[1]))
    return e4m3(*lead, rows, columns), scales(*blocks, width=columns)


def activations(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(torch.bfloat16)
