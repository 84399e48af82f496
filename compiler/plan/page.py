"""The report folder of a plan: plan.json, memory.svg, and both on one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mm2c.errors import UserError
from mm2c.plan.choice import Plan
from mm2c.plan.layouts import name, words
from mm2c.plan.picture import bar_of_room, cache_words, draw_memory
from mm2c.plan.report import contexts, plan_json
from mm2c.plan.sizes import gib, tokens

_STYLE = """
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 980px; margin: 2rem auto; padding: 0 1rem;
         color-scheme: light dark; }
  table { border-collapse: collapse; margin: 1rem 0; } svg { max-width: 100%; height: auto; }
  td, th { padding: .2rem .8rem; border-bottom: 1px solid #8888; text-align: right; vertical-align: top; }
  td:first-child, th:first-child, td:last-child { text-align: left; }
"""


def write_report(folder: Path, plan: Plan, title: str) -> list[Path]:
    """Write the three files; existing ones of the same names are replaced. Raises UserError where that fails."""
    picture = plan_picture(plan)
    files = {
        "plan.json": json.dumps(plan_json(plan, title), indent=1, ensure_ascii=False) + "\n",
        "memory.svg": picture,
        "memory.html": _page(plan, title, picture),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the report cannot be written: {error.strerror}",
            where=str(folder),
            remedy="another folder with -o",
        ) from error
    return [folder / file for file in files]


def plan_picture(plan: Plan) -> str:
    """The GPUs of one replica, with the cache that was asked for, else with all rows full as far as they fit."""
    own = plan.best
    full = own.rows * plan.ask.row_tokens
    held = own.required if plan.ask.batch or not own.fits else min(full, own.group_tokens)
    replicas = f", one of {own.memory.replicas} replicas" if own.memory.replicas > 1 else ""
    return draw_memory(
        [bar_of_room(room, held) for room in own.rooms],
        f"{own.mapping.gpus} × {plan.gpu.title}: {name(own.mapping)}{replicas}",
        cache_words(held, own.tightest.rank.kv_per_token),
    )


def _page(plan: Plan, title: str, picture: str) -> str:
    own = plan.best
    rows = [
        (name(one.mapping), one.verdict, tokens(one.fit.kv_capacity_tokens) if one.fit else "", one.why)
        for one in plan.considered
    ]
    held = [(f"{length:,}", f"{own.requests_of(length):,}") for length in contexts(plan.ask)]
    verdict = (
        f"{tokens(own.kv_capacity_tokens)} tokens of KV cache in all, {tokens(own.group_tokens)} a group of GPUs"
        if plan.fits
        else f"does not fit: each GPU is {gib(own.short)} short"
    )
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><meta charset="utf-8"><title>{escape(name(own.mapping))}</title>',
            f"<style>{_STYLE}</style>",
            f"<h1>{own.mapping.gpus} × {escape(plan.gpu.title)}: {escape(name(own.mapping))}</h1>",
            f"<p>{escape(title)}: {escape(words(own.mapping))}; {escape(verdict)}.</p>",
            picture,
            _table(("tokens a request", "requests at once"), held),
            _table(("layout", "verdict", "tokens in all", "why"), rows),
            "</html>",
            "",
        ]
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
