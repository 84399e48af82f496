"""The numbers of rows that decode steps are captured for."""

from __future__ import annotations

from bisect import bisect_left

MOST_EXACT = 16  # rows up to which a step is so short that its launches matter


def bucket_sizes(most: int, *, padded: bool) -> list[int]:
    """Ascending. ``padded``: a row that pads a step repeats another one. Where rows are linear that row would be
    whichever lies next, in which nothing may be written: such steps have as many rows as there are."""
    return buckets(most) if padded else list(range(1, min(most, MOST_EXACT) + 1))


def buckets(most: int) -> list[int]:
    """1 to 8, then steps of about a third to a half: 12, 16, 24, 32, 48, … up to ``most``, which is the last."""
    found = [size for size in range(1, 9) if size <= most]
    size = 8
    while size < most:
        found += [more for more in (size + size // 2, 2 * size) if more <= most]
        size *= 2
    return found if found[-1] == most else [*found, most]


def bucket_of(sizes: list[int], rows: int) -> int:
    """The smallest of ``sizes`` (ascending) that holds ``rows``."""
    return sizes[bisect_left(sizes, rows)]
