"""What the attention kernels share: where a tile of positions lies in the paged cache, and reading it."""

from __future__ import annotations

import triton
import triton.language as tl

from mm2c_plugins.kernels.e4m3 import decode_f16

# Tokens of a page: the kernels take 16 too, but are compiled for the engine's own size alone.
PAGES = (64,)


@triton.jit
def tile_offsets(
    table, start, length, pages, stride, PAGE: tl.constexpr, BN: tl.constexpr, DEBUG: tl.constexpr
):
    """Offsets (in elements, int64 base and [BN] on top of it) of positions start .. start+BN of one row's cache.

    ``table``: the row's block-table entries; ``stride``: elements from a position to the next inside a page. Entries of
    positions from ``length`` on are not read. Page numbers outside [0, pages) are taken as the nearest inside, so that
    a wrong table cannot fault.
    """
    column = tl.arange(0, BN)
    if PAGE >= BN:  # start is a multiple of BN: the tile lies in one page
        page = tl.load(table + start // PAGE)
        if DEBUG:
            tl.device_assert((page >= 0) & (page < pages), "page number out of range")
        page = tl.minimum(tl.maximum(page, 0), pages - 1)
        base = (page.to(tl.int64) * PAGE + start % PAGE) * stride
        offsets = column * stride
    else:
        position = start + column
        page = tl.load(table + position // PAGE, mask=position < length, other=0)
        if DEBUG:
            tl.device_assert((page >= 0) & (page < pages), "page number out of range")
        page = tl.minimum(tl.maximum(page, 0), pages - 1)
        base = tl.zeros((), tl.int64)
        offsets = (page.to(tl.int64) * PAGE + position % PAGE) * stride
    return base, offsets


@triton.jit
def load_queries(pointers, mask, KV8: tl.constexpr):
    """bf16 queries in the type of load_tile; exact up to f16's largest number, beyond which they saturate."""
    value = tl.load(pointers, mask=mask, other=0.0)
    if KV8:
        wide = value.to(tl.float32)
        return tl.clamp(wide, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL).to(tl.float16)
    else:
        return value


@triton.jit
def load_tile(
    cache, base, offsets, seen, D: tl.constexpr, MASK: tl.constexpr, KV8: tl.constexpr, U8: tl.constexpr
):
    """One tile of the cache as [BN, D]: bf16, or f16 if it is e4m3, which f16 holds exactly and at half the
    instructions. Rows that are not seen are zero, whatever the cache holds there.
    """
    pointers = cache + base + (tl.expand_dims(offsets, -1) + tl.arange(0, D))
    if MASK:
        value = tl.load(pointers, mask=tl.expand_dims(seen, -1), other=0.0)
    else:
        value = tl.load(pointers)
    if U8:
        return decode_f16(value)
    elif KV8:
        return value.to(tl.float16)
    else:
        return value


def kv_formats(sm: int) -> list[tuple[str, dict[str, str], dict[str, bool]]]:
    """(name, types, constants) of the cache formats built for an architecture: bf16, and e4m3 as the type that the
    architecture converts itself or as bytes.
    """
    e4m3, by_bits = ("fp8e4nv", False) if sm >= 89 else ("u8", True)
    return [
        ("bf16", {"kv": "bf16"}, {"KV8": False, "U8": False}),
        ("fp8", {"kv": e4m3}, {"KV8": True, "U8": by_bits}),
    ]
