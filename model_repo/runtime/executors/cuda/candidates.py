"""The best tokens of a rank's part of the vocabulary, as keys."""

from __future__ import annotations

import torch
from torch import Tensor

from mm2c_runtime.sampling.keys import COUNT, FLAGGED, LAST_ID, NO_TOKEN


def best_keys(logits: Tensor, first: int, real: int) -> Tensor:
    """Keys i64[R, COUNT + 1], descending, of the best of logits f32[R, n], whose token ids begin at ``first``; of the
    n columns ``real`` are tokens, the rest is padding. The last column is FLAGGED or 0.
    """
    own = logits[:, :real]
    finite = torch.isfinite(own).all(-1, keepdim=True)
    bits = (own + 0.0).view(torch.int32).to(torch.int64)  # -0 + 0 is +0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ids = torch.arange(first, first + real, device=logits.device)
    keys = (ordered << 32) | (LAST_ID - ids)
    found = torch.topk(keys, min(COUNT, real), dim=-1).values
    missing = COUNT - found.shape[-1]
    if missing:
        found = torch.nn.functional.pad(found, (0, missing), value=NO_TOKEN)
    return torch.cat([found, torch.where(finite, 0, FLAGGED)], dim=-1)
