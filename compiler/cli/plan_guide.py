"""What `mm2c plan --guide` prints: vLLM's guide beside our figures, and the arithmetic between the two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.table import Table

from mm2c.cli.console import out, print_table
from mm2c.cli.plan_tables import line, print_head
from mm2c.plan.ask import Ask
from mm2c.plan.compare import Base, Comparison
from mm2c.plan.guide import KV_GB_PER_MILLION, WEIGHTS_GB
from mm2c.plan.layouts import name
from mm2c.plan.sizes import gb, gib, tokens
from mm2c.plan.source import Source


def print_guide(ask: Ask, source: Source, found: Sequence[Comparison]) -> None:
    base = print_head(ask, source)
    out.print()
    print_table(_totals(base))
    print_table(_rows(found))
    out.print("where the difference comes from, in tokens:")
    for _, same in groupby(found, key=_arithmetic):
        _print_arithmetic(list(same))
    for row in (one for one in found if one.refused):
        line(name(row.ours.mapping), f"on {row.row.title}: {row.remark}")


def _totals(base: Base) -> Table:
    table = Table(title="what the model takes", title_justify="left")
    table.add_column("")
    table.add_column("guide", justify="right")
    table.add_column("ours", justify="right")
    table.add_column("arithmetic", max_width=49)
    w = base.weights
    parts = (
        f"experts {gb(w.experts)} + attention {gb(w.attention)} (FP8: a byte, and 4 bytes a block) + "
        f"embedding and head {gb(w.embedding + w.head)} (bf16) + router, norms, rope "
        f"{gb(w.router + w.norms + w.rope)}; {_units(w.total, WEIGHTS_GB)}"
    )
    million = base.kv_per_token * 1e6
    table.add_row("weights", f"{WEIGHTS_GB} GB", f"{gb(w.total)}\n{gib(w.total)}", parts)
    table.add_row(
        "KV cache of 1 M tokens",
        f"{KV_GB_PER_MILLION} GB",
        f"{gb(million)}\n{gib(million)}",
        f"{base.kv_per_token:,} bytes a token · 10^6; {_units(million, KV_GB_PER_MILLION)}",
    )
    return table


def _units(size: float, stated: int) -> str:
    """How the guide's figure, in what it calls GB, lies to ours."""
    if size / 2**30 <= stated <= size / 1e9:
        return "the guide's figure lies between ours in GiB and in GB"
    return "the guide speaks of the released FP8 weights with a bf16 cache, ours are others"


def _rows(found: Sequence[Comparison]) -> Table:
    table = Table(title="tokens of KV cache in all", title_justify="left")
    table.add_column("guide's GPUs")
    table.add_column("taken as")
    table.add_column("layout")
    for column in ("guide", "its way", "ours", "ratio", "FP8 cache"):
        table.add_column(column, justify="right")
    for one in found:
        stated = "refused" if one.refused else tokens(one.row.tokens) if one.row.tokens else "—"
        table.add_row(
            one.row.title,
            one.ours.gpu.name,
            name(one.ours.mapping),
            stated,
            tokens(one.counted),
            tokens(one.ours.kv_capacity_tokens) if one.ours.fits else "no room",
            f"{one.ratio:.2f} ×" if one.ratio and not one.refused else "",
            tokens(one.fp8),
            style="dim" if one.refused else "",
        )
    return table


def _arithmetic(one: Comparison) -> object:
    """Layouts whose arithmetic reads nearly the same are printed once."""
    return one.row.title, [round(term.tokens / 2e4) for term in one.terms], one.refused


def _print_arithmetic(same: Sequence[Comparison]) -> None:
    one = same[0]
    if one.refused:
        return
    layouts = " and ".join(dict.fromkeys(name(each.ours.mapping) for each in same))
    cards = ", ".join(dict.fromkeys(each.ours.gpu.title for each in same))
    out.print(f"\n[bold]{one.row.title} ({cards}), {layouts}[/]", soft_wrap=True)
    for place, term in enumerate(one.terms):
        sign = "" if place == 0 else "+" if term.tokens >= 0 else "−"
        out.print(f"  {sign + tokens(abs(term.tokens)):>9}  {term.what}", soft_wrap=True)
    out.print(f"  {'= ' + tokens(one.ours.kv_capacity_tokens):>9}  ours", soft_wrap=True)
    line("  guide", one.remark)
