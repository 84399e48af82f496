"""A layered layout: every edge points down, long edges bend around the boxes between their ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

GAP_X, GAP_Y, MARGIN = 28.0, 50.0, 24.0  # px between boxes of a row, between rows, and around all
BEND_WIDTH = 12.0  # px that an edge takes where it passes a row
_SWEEPS = 12

Key = str
Link = tuple[Key, Key]


@dataclass
class Place:
    """A box's rectangle; ``y`` is its top."""

    x: float
    y: float
    width: float
    height: float

    @property
    def center(self) -> float:
        return self.x + self.width / 2


@dataclass
class Layout:
    """``bends``: for each link the points between its ends, from top to bottom."""

    places: dict[Key, Place]
    bends: dict[Link, list[tuple[float, float]]]
    width: float
    height: float


@dataclass
class _Grid:
    """Boxes and bends by row, each with its width, and who is joined with whom in the next row."""

    rows: list[list[Key]]
    widths: dict[Key, float]
    up: dict[Key, list[Key]] = field(default_factory=lambda: defaultdict(list))
    down: dict[Key, list[Key]] = field(default_factory=lambda: defaultdict(list))
    chains: dict[Link, list[Key]] = field(default_factory=dict)


def lay_out(sizes: dict[Key, tuple[float, float]], links: Sequence[Link]) -> Layout:
    """Places for boxes of the given sizes (width, height), listed in an order in which no link points back.

    The same input gives the same layout. Raises ValueError for a link that points back.
    """
    grid = _grid(sizes, list(dict.fromkeys(links)))
    for sweep in range(_SWEEPS):
        _order(grid, downwards=sweep % 2 == 0)
    centers = _centers(grid)
    return _placed(sizes, grid, centers)


def _grid(sizes: dict[Key, tuple[float, float]], links: list[Link]) -> _Grid:
    order = {key: i for i, key in enumerate(sizes)}
    depth = dict.fromkeys(sizes, 0)
    for source, target in sorted(links, key=lambda link: order[link[1]]):
        if order[source] >= order[target]:
            raise ValueError(f"the link from {source} to {target} points back")
        depth[target] = max(depth[target], depth[source] + 1)
    reaches: dict[Key, int] = {}
    for source, target in links:
        reaches[source] = min(reaches.get(source, depth[target]), depth[target])
    for key in sizes:  # what has nothing above it stands right above what reads it
        if key in reaches and not any(target == key for _, target in links):
            depth[key] = reaches[key] - 1
    grid = _Grid(
        [[] for _ in range(max(depth.values(), default=-1) + 1)], {k: w for k, (w, _) in sizes.items()}
    )
    for key in sizes:
        grid.rows[depth[key]].append(key)
    for source, target in links:
        chain = [source]
        for row in range(depth[source] + 1, depth[target]):
            bend = f"{source}\0{target}\0{row}"
            grid.rows[row].append(bend)
            grid.widths[bend] = BEND_WIDTH
            chain.append(bend)
        chain.append(target)
        grid.chains[source, target] = chain
        for above, below in pairwise(chain):
            grid.down[above].append(below)
            grid.up[below].append(above)
    return grid


def _order(grid: _Grid, *, downwards: bool) -> None:
    """Sort every row by the mean place of what its boxes are joined with in the row before."""
    for row in range(1, len(grid.rows)) if downwards else range(len(grid.rows) - 2, -1, -1):
        beside = grid.rows[row - 1 if downwards else row + 1]
        place = {key: i / max(len(beside) - 1, 1) for i, key in enumerate(beside)}
        joined = grid.up if downwards else grid.down
        own = {key: i / max(len(grid.rows[row]) - 1, 1) for i, key in enumerate(grid.rows[row])}

        def mean(key: Key, joined: dict[Key, list[Key]] = joined, own: dict[Key, float] = own,
                 place: dict[Key, float] = place) -> float:  # fmt: skip
            found = [place[other] for other in joined[key] if other in place]
            return sum(found) / len(found) if found else own[key]

        grid.rows[row].sort(key=mean)


def _centers(grid: _Grid) -> dict[Key, float]:
    """Middles of all boxes: as near to those they are joined with as their neighbours allow."""
    centers: dict[Key, float] = {}
    for row in grid.rows:
        right = 0.0
        for key in row:
            centers[key] = right + grid.widths[key] / 2
            right += grid.widths[key] + GAP_X
    for sweep in range(2 * _SWEEPS):
        joined = grid.up if sweep % 2 == 0 else grid.down
        for row in grid.rows if sweep % 2 == 0 else reversed(grid.rows):
            wanted = [
                sum(centers[o] for o in joined[key]) / len(joined[key]) if joined[key] else centers[key]
                for key in row
            ]
            for key, center in zip(row, _apart(wanted, [grid.widths[key] for key in row]), strict=True):
                centers[key] = center
    return centers


def _apart(wanted: list[float], widths: list[float]) -> list[float]:
    """The middles nearest to ``wanted`` in their order at which boxes do not touch: groups of boxes that would are
    pushed together and stand around the mean of what they want."""
    groups: list[tuple[float, float, list[int]]] = []  # sum of wanted starts, start, members
    offsets = [0.0] * len(wanted)
    for i, (center, width) in enumerate(zip(wanted, widths, strict=True)):
        total, start, members = center - width / 2, center - width / 2, [i]
        offsets[i] = 0.0
        while groups and groups[-1][1] + _length(groups[-1][2], widths) + GAP_X > start:
            before_total, _, before = groups.pop()
            shift = _length(before, widths) + GAP_X
            total = before_total + total - shift * len(members)
            for member in members:
                offsets[member] += shift
            members = before + members
            start = total / len(members)
        groups.append((total, start, members))
    return [
        start + offsets[member] + widths[member] / 2 for _, start, members in groups for member in members
    ]


def _length(members: list[int], widths: list[float]) -> float:
    return sum(widths[member] for member in members) + GAP_X * (len(members) - 1)


def _placed(sizes: dict[Key, tuple[float, float]], grid: _Grid, centers: dict[Key, float]) -> Layout:
    left = min((centers[key] - grid.widths[key] / 2 for row in grid.rows for key in row), default=0.0)
    places: dict[Key, Place] = {}
    points: dict[Key, list[tuple[float, float]]] = {}
    top = right = MARGIN
    for row in grid.rows:
        height = max((sizes[key][1] for key in row if key in sizes), default=0.0)
        for key in row:
            middle = centers[key] - left + MARGIN
            right = max(right, middle + grid.widths[key] / 2)
            if key in sizes:
                places[key] = Place(middle - sizes[key][0] / 2, top, *sizes[key])
            else:
                points[key] = [(middle, top), (middle, top + height)]
        top += height + GAP_Y
    bends = {link: [p for key in chain[1:-1] for p in points[key]] for link, chain in grid.chains.items()}
    return Layout(places, bends, right + MARGIN, max(top - GAP_Y, MARGIN) + MARGIN)
