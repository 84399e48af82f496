"""The memory of GPUs as stacked bars: an SVG written by hand, the same bytes for the same plan.

One bar a GPU of a replica (the others are alike), parts from the left: weights by part, what steps and system take,
the KV cache that was asked for, and what is free beside it. Text and lines have the reader's colour scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape

from mm2c.memory import RankMemory
from mm2c.plan.room import Room
from mm2c.plan.sizes import gib, tokens

WIDTH, LEFT, RIGHT = 960, 92, 96  # pixels: the picture, and beside the bars
BAR, GAP, TOP, KEY = 26, 12, 58, 22
MOST = 16  # bars that are drawn
LABELLED = 130  # pixels of a part that has its name and size written on it
_STYLE = """
  svg { font: 13px system-ui, sans-serif; color-scheme: light dark; }
  text { fill: #1f2328; } text.on { fill: #ffffff; font-size: 12px; }
  .soft { fill: #59636e; } .frame { fill: none; stroke: #59636e; }
  .free { fill: #eaeef2; stroke: #d1d9e0; } .over { fill: none; stroke: #d1242f; stroke-width: 2; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } text.on { fill: #ffffff; } .soft { fill: #9198a1; } .frame { stroke: #9198a1; }
    .free { fill: #21262d; stroke: #3d444d; } .over { stroke: #f85149; }
  }
"""
COLOURS = {
    "experts": "#3b78c2", "attention": "#7a5cc2", "embedding": "#2f9e8f", "head": "#5bb56a", "router": "#b8a13a",
    "norms": "#8f8f8f", "rope": "#b08968", "activations": "#d9822b", "workspace": "#e0a458", "buffers": "#c98f5a",
    "reserve": "#a65c5c", "system": "#7d8590", "KV cache": "#d4578a",
}  # fmt: skip
MEANS = {
    "activations": "activations of the largest step", "workspace": "kernels' workspace",
    "buffers": "buffers between steps", "reserve": "CUDA graphs and margin", "system": "driver, context, NCCL",
    "rope": "rotary tables",
}  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """``parts``: name and bytes from the left; ``memory``: bytes of the GPU, 0 where none is known."""

    label: str
    parts: tuple[tuple[str, int], ...]
    memory: int

    @property
    def used(self) -> int:
        return sum(size for _, size in self.parts)


def bar_of_room(room: Room, kv_tokens: int) -> Bar:
    """A GPU with ``kv_tokens`` tokens in its cache."""
    parts = [
        *rank_parts(room.rank), ("reserve", room.reserve), ("system", room.system + room.collectives),
        ("KV cache", kv_tokens * room.rank.kv_per_token),
    ]  # fmt: skip
    return Bar(f"GPU {room.rank.rank}", tuple(parts), room.memory)


def bar_of_rank(rank: RankMemory, kv_tokens: int) -> Bar:
    """A rank, whatever GPU it will be on."""
    kv = ("KV cache", kv_tokens * rank.kv_per_token)
    return Bar(f"rank {rank.rank}", (*rank_parts(rank), kv), 0)


def rank_parts(rank: RankMemory) -> list[tuple[str, int]]:
    weights = sorted(asdict(rank.weights).items(), key=lambda item: -item[1])
    steps = [("activations", rank.activations), ("workspace", rank.workspace), ("buffers", rank.buffers)]
    return [*weights, *steps]


def draw_memory(bars: Sequence[Bar], title: str, subtitle: str) -> str:
    """The SVG. Bars beyond ``MOST`` are left out, and said to be."""
    shown = list(bars[:MOST])
    most = max(max(bar.memory, bar.used) for bar in shown)
    scale = (WIDTH - LEFT - RIGHT) / most
    body, y = [], TOP
    for bar in shown:
        body += _bar(bar, y, scale)
        y += BAR + GAP
    if len(bars) > len(shown):
        body.append(f'<text class="soft" x="{LEFT}" y="{y + 12}">and {len(bars) - len(shown)} more</text>')
        y += KEY
    key, y = _key(shown, y + 14)
    head = [
        f'<text x="{LEFT}" y="24" font-size="16" font-weight="600">{escape(title)}</text>',
        f'<text class="soft" x="{LEFT}" y="44">{escape(subtitle)}</text>',
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 8}" width="{WIDTH}" '
            f'height="{y + 8}" role="img" aria-label="{escape(title)}">',
            f"<style>{_STYLE}</style>",
            *head,
            *body,
            *key,
            "</svg>",
            "",
        ]
    )


def _bar(bar: Bar, y: int, scale: float) -> list[str]:
    lines = [f'<text x="{LEFT - 8}" y="{y + 18}" text-anchor="end">{escape(bar.label)}</text>']
    if bar.memory:
        free = bar.memory - bar.used
        lines.append(_rect("free", LEFT, y, bar.memory * scale, f"free: {gib(free)}" if free >= 0 else ""))
    x = float(LEFT)
    for name, size in bar.parts:
        wide = size * scale
        if wide >= 0.05:
            text = f"{MEANS.get(name, name)}: {gib(size)}"
            lines.append(_rect("", x, y, wide, text, COLOURS[name]))
        if wide >= LABELLED:
            lines.append(
                f'<text class="on" x="{x + wide / 2:.1f}" y="{y + 18}" text-anchor="middle">{name} {gib(size)}</text>'
            )
        x += wide
    if bar.memory:
        kind = "over" if bar.used > bar.memory else "frame"
        lines.append(_rect(kind, LEFT, y, bar.memory * scale, ""))
        end = LEFT + max(bar.memory, bar.used) * scale
        text = f"{gib(free)} free" if free >= 0 else "too much"
    else:
        end, text = x, gib(bar.used)
    lines.append(f'<text class="soft" x="{end + 6:.1f}" y="{y + 18}" font-size="11">{text}</text>')
    return lines


def _rect(kind: str, x: float, y: int, width: float, title: str, colour: str = "") -> str:
    look = f'class="{kind}"' if kind else f'fill="{colour}"'
    tip = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect {look} x="{x:.2f}" y="{y}" width="{max(width, 0):.2f}" height="{BAR}">{tip}</rect>'


def _key(bars: Sequence[Bar], y: int) -> tuple[list[str], int]:
    """Two columns: colour, part, and its bytes on the first GPU."""
    names = [(name, size) for name, size in bars[0].parts if size]
    if bars[0].memory:
        free = bars[0].memory - bars[0].used
        names.append(("free", free) if free >= 0 else ("too much", -free))
    half = -(-len(names) // 2)
    lines = []
    for place, (name, size) in enumerate(names):
        x = LEFT + (place // half) * (WIDTH - LEFT) // 2
        at = y + (place % half) * KEY
        kind = {"free": "free", "too much": "over"}.get(name)
        look = f'class="{kind}"' if kind else f'fill="{COLOURS[name]}"'
        lines.append(f'<rect {look} x="{x}" y="{at}" width="14" height="14"/>')
        lines.append(f'<text x="{x + 22}" y="{at + 12}">{escape(MEANS.get(name, name))}</text>')
        lines.append(
            f'<text class="soft" x="{x + 330}" y="{at + 12}" text-anchor="end">{size / 2**30:,.2f} GiB</text>'
        )
    return lines, y + half * KEY


def cache_words(kv_tokens: int, per_token: int) -> str:
    """``KV cache of 409,600 tokens, 63,488 bytes each``."""
    return f"KV cache of {tokens(kv_tokens)} tokens, {per_token:,} bytes each on a GPU"
