"""What would help where a plan does not fit: tried, not guessed."""

from __future__ import annotations

from dataclasses import replace

from mm2c.checkpoint.convert import converted_formats
from mm2c.config import PAGE
from mm2c.errors import UserError
from mm2c.plan.ask import Ask
from mm2c.plan.choice import Plan, fewest, make_plan
from mm2c.plan.fit import Fit, fit
from mm2c.plan.gpus import GPUS, Gpu
from mm2c.plan.layouts import flags, name
from mm2c.plan.sizes import gib


def shortage(plan: Plan) -> str:
    """By how much it does not fit, in a sentence; nothing where it fits."""
    own = plan.best
    if own.fits:
        return ""
    room = own.tightest
    what = (
        f"{own.required:,} tokens of cache beside {gib(room.fixed)} of weights and steps"
        if own.weights_fit
        else f"weights of {gib(room.rank.weights.total)}, steps and reserve of "
        f"{gib(room.fixed - room.rank.weights.total)} and {own.required:,} tokens of cache"
    )
    return f"each GPU is {gib(own.short)} short: {name(own.mapping)} puts {what} on its {gib(room.memory)}"


def remedies(plan: Plan) -> list[str]:
    """Changes of which each alone makes the plan fit: less asked for, other formats, other or larger GPUs."""
    if plan.fits:
        return []
    tried = [_smaller(plan.best), _kv(plan), _weights(plan), _enough(plan), _larger(plan)]
    return [text for text in tried if text]


def _smaller(own: Fit) -> str:
    """The longest context, and the most requests, that the layout holds as it is."""
    parts = []
    rows = own.rows if own.ask.batch else 1
    if own.ask.batch and (requests := own.requests_of(own.ask.context)):
        parts.append(f"--batch {requests}")
    if context := own.group_tokens // rows // PAGE * PAGE:
        parts.append(f"--context {context}")
    return " or ".join(parts)


def _kv(plan: Plan) -> str:
    ask = replace(plan.ask, kv_dtype="fp8")
    return "--kv-dtype fp8" if plan.ask.kv_dtype != "fp8" and _fits(ask, plan) else ""


def _weights(plan: Plan) -> str:
    formats = converted_formats(plan.ask.config, plan.ask.formats, "fp8")
    changed = formats.fp8 != plan.ask.formats.fp8
    return "--fp8 weights" if changed and _fits(replace(plan.ask, formats=formats), plan) else ""


def _fits(ask: Ask, plan: Plan) -> bool:
    return fit(ask, plan.gpu, plan.best.mapping).fits


def _enough(plan: Plan) -> str:
    """As many GPUs as it takes, in a layout of their own: more, or the same in another way, or fewer where a number
    such as 5 can only be used badly."""
    enough = fewest(plan.ask, plan.gpu)
    return "" if enough is None else f"{enough.mapping.gpus} GPUs ({flags(enough.mapping)})"


def _larger(plan: Plan) -> str:
    """The smallest GPU of the same maker on which as many suffice."""
    maker = (gpu for gpu in GPUS if gpu.vendor == plan.gpu.vendor and gpu.memory > plan.gpu.memory)
    for gpu in sorted(maker, key=lambda gpu: gpu.memory):
        if plan.given:
            found = fit(plan.ask, gpu, plan.best.mapping)
            if found.fits:
                return f"{found.mapping.gpus} × {gpu.title}"
        elif best := _best(plan.ask, gpu, plan.best.mapping.gpus):
            return f"{best.mapping.gpus} × {gpu.title} ({flags(best.mapping)})"
    return ""


def _best(ask: Ask, gpu: Gpu, count: int) -> Fit | None:
    try:
        best = make_plan(ask, gpu, gpus=count).best
    except UserError:  # no layout of so many
        return None
    return best if best.fits else None
