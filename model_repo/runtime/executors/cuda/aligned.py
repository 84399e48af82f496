"""Memory whose addresses are multiples of what TensorRT asks of every tensor."""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNMENT = 256  # bytes


def aligned_bytes(size: int, device: torch.device) -> Tensor:
    """u8[size] of any content, on a multiple of ``ALIGNMENT``; a GPU's memory is by itself."""
    block = torch.empty(max(size, 1) + ALIGNMENT, dtype=torch.uint8, device=device)
    begin = -block.data_ptr() % ALIGNMENT
    return block[begin : begin + size]


def aligned_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A contiguous tensor of any content."""
    count = 1
    for size in shape:
        count *= size
    return aligned_bytes(count * dtype.itemsize, device).view(dtype).view(shape)
