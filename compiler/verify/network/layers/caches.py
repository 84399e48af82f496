"""KV_CACHE_UPDATE: new rows into a linear cache."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mm2c.verify.network.dtypes import Precision
from mm2c.verify.network.errors import ReplayError
from mm2c.verify.network.layers.given import numbers, tensor
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView


@evaluates("KV_CACHE_UPDATE", "IKVCacheUpdateLayer", "cache_mode", "update_form", "update_lengths")
def kv_cache_update(view: LayerView) -> Evaluate:
    """cache[B, heads, L, D] with update[B, heads, S, D] at positions at[b] … at[b] + S - 1 of row b. The cache that is
    fed is left as it is; TensorRT writes into it."""
    view.only(0, 1, 2)
    layer = view.layer
    view.one_of("cache mode", layer.cache_mode, "LINEAR")
    view.one_of("update form", layer.update_form, "PADDED_BHND")
    if layer.update_lengths is not None:
        view.refuse("update_lengths")
    cache, update, at = (view.input(index) for index in range(3))
    if cache.dtype != update.dtype or cache.dtype == "FP8" or at.dtype not in ("INT32", "INT64"):
        view.refuse(f"{update.dtype} into {cache.dtype} at {at.dtype}")
    if (len(cache.shape), len(update.shape), len(at.shape)) != (4, 4, 1):
        view.refuse(f"cache {list(cache.shape)}, update {list(update.shape)}, write indices {list(at.shape)}")

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        old, new, starts = tensor(given, 0), tensor(given, 1), numbers(tensor(given, 2))
        rows, heads, length, width = old.shape
        if (len(starts), *new.shape[:2], new.shape[3]) != (rows, rows, heads, width):
            raise ReplayError(
                f"layer {view.name}: {list(new.shape)} at {len(starts)} places of {list(old.shape)}"
            )
        made = old.clone()
        for row, start in enumerate(starts):
            if not 0 <= start <= length - new.shape[2]:
                raise ReplayError(f"layer {view.name}: {new.shape[2]} tokens at {start} of {length}")
            made[row, :, start : start + new.shape[2]] = new[row]
        return (made,)

    return evaluate
