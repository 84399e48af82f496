"""What a streamed comparison computes: a few rows of known tokens, and the steps that carry them.

All tokens are known beforehand, so that a layer can be run for every step before the next layer is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

DECODE_STEPS = 2


@dataclass(frozen=True)
class Row:
    """``ids``: prompt and then what is decoded; the first ``prompt`` are the prompt. ``group``: attention group
    that runs it, ``place``: its row in that group's cache."""

    ids: tuple[int, ...]
    prompt: int
    group: int = 0
    place: int = 0


@dataclass(frozen=True)
class Piece:
    """Tokens ``start`` to ``stop`` of ``row``."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True)
class Step:
    """One batch of each attention group, in the order of the groups' cache rows; empty where a group has none."""

    groups: tuple[tuple[Piece, ...], ...]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return tuple(piece for group in self.groups for piece in group)

    @property
    def width(self) -> int:
        return max(piece.stop - piece.start for piece in self.pieces)


@dataclass(frozen=True)
class Script:
    rows: tuple[Row, ...]
    steps: tuple[Step, ...]
    groups: int = 1

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)

    @property
    def longest(self) -> int:
        return max(len(row.ids) for row in self.rows)

    def rows_of(self, group: int) -> list[int]:
        return [index for index, row in enumerate(self.rows) if row.group == group]


def make_script(
    vocab: int, context: int, max_rows: int, chunk: int, tokens: int, groups: int = 1, seed: int = 0
) -> Script:
    """Random prompts of about ``tokens`` tokens together: one prefilled at once, one in two chunks, one of a single
    token; then every row of a group decodes ``DECODE_STEPS`` tokens in one ragged batch.

    ``context``, ``max_rows`` (of a group) and ``chunk`` are the bundle's limits. At least one row has a token to
    prefill and, where the context has room, one to decode.
    """
    steps = min(DECODE_STEPS, context - 1)
    rows = max(1, min(3, max_rows * groups, tokens // (steps + 1)))
    prompts = max(rows, tokens - rows * steps)
    single = 1 if rows == 3 else 0
    share = prompts - single
    lengths = [-(-share * 3 // 5), share - -(-share * 3 // 5), 1][:rows] if rows > 1 else [prompts]
    random = np.random.default_rng(seed)
    made = []
    for index, length in enumerate(lengths):
        prompt = max(1, min(length, context - steps))
        ids = tuple(random.integers(0, vocab, prompt + steps).tolist())
        made.append(Row(ids, prompt, index % groups, index // groups))
    return Script(tuple(made), _steps(made, chunk, steps, groups), groups)


def whole_rows(prompts: list[list[int]], decoded: list[list[int]], chunk: int) -> Script:
    """A script of one attention group: every prompt in pieces of ``chunk``, then its row of ``decoded``."""
    rows = [
        Row((*prompt, *more), len(prompt), 0, index)
        for index, (prompt, more) in enumerate(zip(prompts, decoded, strict=True))
    ]
    return Script(tuple(rows), _steps(rows, chunk, len(decoded[0]), 1), 1)


def _steps(rows: list[Row], chunk: int, decode: int, groups: int) -> tuple[Step, ...]:
    lists: list[list[tuple[Piece, ...]]] = [[] for _ in range(groups)]
    for index, row in enumerate(rows):
        size = min(chunk, row.prompt)
        if index == 1:
            size = min(size, -(-row.prompt * 2 // 3))  # two chunks of different lengths
        for start in range(0, row.prompt, size):
            lists[row.group].append((Piece(index, start, min(start + size, row.prompt)),))
    # prefills of groups run side by side, and so do their decode batches
    longest = max(map(len, lists))
    for own in lists:
        own += [()] * (longest - len(own))
    for group, own in enumerate(lists):
        for n in range(decode):
            own.append(
                tuple(
                    Piece(index, row.prompt + n, row.prompt + n + 1)
                    for index, row in enumerate(rows)
                    if row.group == group
                )
            )
    return tuple(Step(tuple(parts)) for parts in zip_longest(*lists, fillvalue=()))
