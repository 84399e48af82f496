"""The layout that suits given GPUs best, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from mm2c.config import Mapping
from mm2c.errors import UserError
from mm2c.plan.ask import Ask
from mm2c.plan.fit import Fit, fit
from mm2c.plan.gpus import Gpu
from mm2c.plan.layouts import MOST_GPUS, fault_of, flags, layouts
from mm2c.plan.sizes import gib, tokens
from mm2c.plan.speed import DecodeStep, decode_step

ALIKE = 1.02  # steps whose bounds differ by less are equally fast; the larger cache decides then
NAMED = 4  # layouts that a refusal names
ROOMY = 0.5  # of the largest cache: a layout with less is not chosen unless the batch was given and fits
Verdict = Literal["chosen", "closest", "given", "fits", "no room", "not possible"]


@dataclass(frozen=True)
class Considered:
    """One layout: ``why`` it was taken or left; ``fit`` and ``step`` None where the model does not allow it. Where none
    fits, the one that lacks little is the "closest" instead of "chosen"."""

    mapping: Mapping
    verdict: Verdict
    why: str
    fit: Fit | None = None
    step: DecodeStep | None = None


@dataclass(frozen=True)
class Plan:
    """``best``: the layout that was given, or chosen of ``considered``; where none fits, one that lacks little."""

    ask: Ask
    gpu: Gpu
    given: bool
    best: Fit
    considered: tuple[Considered, ...]

    @property
    def fits(self) -> bool:
        return self.best.fits

    @cached_property
    def step(self) -> DecodeStep:
        return decode_step(self.best)

    @property
    def why(self) -> str:
        return next(one.why for one in self.considered if one.mapping == self.best.mapping)


def make_plan(ask: Ask, gpu: Gpu, *, gpus: int = 0, tp: int = 0, ep: int = 0, dp: int = 0) -> Plan:
    """The plan of a layout (0: not given). With ``tp`` it is that layout, as `mm2c build` would take it; without, the
    best of all that have the given sizes; without a number of GPUs on the fewest that suffice.

    Raises UserError, naming the nearest layouts that can work, where the model allows none.
    """
    if tp:
        return _given(ask, gpu, _completed(gpus, tp, ep, dp))
    counts = [gpus] if gpus else _counts(ep, dp)
    found = None
    for count in counts:
        plan = _best_on(ask, gpu, count, ep, dp)
        if plan is None:
            continue
        found = plan if found is None or plan.best.short <= found.best.short else found
        if plan.fits:
            return plan
    if found is None:
        raise _impossible(ask, gpu, gpus, ep, dp)
    return found


def _completed(gpus: int, tp: int, ep: int, dp: int) -> Mapping:
    mapping = Mapping(tp, ep or 1, dp or max(gpus // tp, 1))
    if gpus and mapping.gpus != gpus:
        raise UserError(
            f"{flags(mapping)} is a layout of {mapping.gpus} GPUs, and --gpus says {gpus}",
            where="--gpus, --tp, --dp",
            remedy="tp · dp is the number of GPUs; leave --gpus away, or one of the others",
        )
    return mapping


def _counts(ep: int, dp: int) -> list[int]:
    """Numbers of GPUs to try: powers of two, and multiples of the sizes that were given."""
    size = max(ep, dp, 1)
    return sorted({count for count in (size, *(2**n for n in range(7))) if size <= count <= MOST_GPUS}) or [
        size
    ]


def _given(ask: Ask, gpu: Gpu, mapping: Mapping) -> Plan:
    if fault := fault_of(ask.config, mapping, ask.engine, ask.formats):
        raise UserError(
            fault.what, where=fault.where or "--tp, --ep, --dp", remedy=_near(ask, gpu, mapping, fault)
        )
    own = fit(ask, gpu, mapping)
    step = decode_step(own)
    return Plan(ask, gpu, True, own, (Considered(mapping, "given", _figures(own, step), own, step),))


def _near(ask: Ask, gpu: Gpu, wanted: Mapping, fault: UserError | None) -> str:
    """Layouts like ``wanted`` that can work, those that fit first; where none does, the fewest GPUs that do. Where none
    can work at all, what ``fault`` says."""
    from mm2c.passes.legality import nearest

    def runs(mapping: Mapping) -> bool:
        return fault_of(ask.config, mapping, ask.engine, ask.formats) is None

    def has_room(mapping: Mapping) -> bool:
        return runs(mapping) and fit(ask, gpu, mapping).fits

    roomy = nearest(ask.config, wanted, has_room)
    near = list(dict.fromkeys([*roomy, *nearest(ask.config, wanted, runs)]))[:NAMED]
    if not near:
        return fault.remedy if fault else ""
    named = "; ".join(_size(fit(ask, gpu, mapping)) for mapping in near)
    if not roomy and (enough := fewest(ask, gpu)):
        return f"it fits on {_size(enough)}; the nearest layouts that can work, too small: {named}"
    return f"the nearest layouts that can: {named}"


def fewest(ask: Ask, gpu: Gpu) -> Fit | None:
    """The best layout of the fewest GPUs that suffice; None where no number does."""
    plans = (_best_on(ask, gpu, count, 0, 0) for count in _counts(0, 0))
    return next((plan.best for plan in plans if plan and plan.fits), None)


def _size(own: Fit) -> str:
    count = own.mapping.gpus
    size = f"{tokens(own.kv_capacity_tokens)} tokens" if own.fits else f"{gib(own.short)} a GPU too much"
    return f"{flags(own.mapping)} ({count} GPU{'s' if count > 1 else ''}, {size})"


def _impossible(ask: Ask, gpu: Gpu, gpus: int, ep: int, dp: int) -> UserError:
    count = gpus or max(ep, dp, 1)
    asked = [f"--{kind} {size}" for kind, size in (("gpus", gpus), ("ep", ep), ("dp", dp)) if size]
    wanted = Mapping(max(count // (dp or 1), 1), ep or 1, dp or 1)
    fault = fault_of(ask.config, wanted, ask.engine, ask.formats)
    return UserError(
        f"no layout of {' '.join(asked)} can work" + (f": {fault.what}" if fault else ""),
        where="--gpus, --ep, --dp",
        remedy=_near(ask, gpu, wanted, fault),
    )


def _best_on(ask: Ask, gpu: Gpu, gpus: int, ep: int, dp: int) -> Plan | None:
    """None where no layout is legal."""
    found, refused = [], []
    for mapping in layouts(gpus, ep=ep, dp=dp):
        fault = fault_of(ask.config, mapping, ask.engine, ask.formats)
        if fault:
            refused.append(Considered(mapping, "not possible", fault.what))
        else:
            own = fit(ask, gpu, mapping)
            found.append((own, decode_step(own)))
    if not found:
        return None
    fitting = [pair for pair in found if pair[0].fits]
    best, step = _fastest(_roomy(fitting, ask)) if fitting else _fastest(_nearly(found))
    rest = sorted((pair for pair in found if pair[0] is not best), key=_order)
    verdict: Verdict = "chosen" if fitting else "closest"
    listed = [Considered(best.mapping, verdict, _chosen(best, step, len(fitting), len(found)), best, step)]
    listed += [_left(own, its, best, step) for own, its in rest]
    return Plan(ask, gpu, False, best, (*listed, *refused))


def _order(pair: tuple[Fit, DecodeStep]) -> tuple[bool, float]:
    own, step = pair
    return not own.fits, step.seconds if own.fits else own.short


def _roomy(fitting: list[tuple[Fit, DecodeStep]], ask: Ask) -> list[tuple[Fit, DecodeStep]]:
    """Where nobody said how many requests there will be: those that hold enough of what could be held."""
    if ask.batch:
        return fitting
    most = max(own.kv_capacity_tokens for own, _ in fitting)
    return [pair for pair in fitting if pair[0].kv_capacity_tokens >= ROOMY * most]


def _nearly(found: list[tuple[Fit, DecodeStep]]) -> list[tuple[Fit, DecodeStep]]:
    """Those that lack about as little as the one that lacks least."""
    least = min(own.short for own, _ in found)
    return [pair for pair in found if pair[0].short <= ALIKE * least]


def _fastest(pairs: list[tuple[Fit, DecodeStep]]) -> tuple[Fit, DecodeStep]:
    """Of those that are as fast as the fastest, the one with the largest cache."""
    least = min(step.seconds for _, step in pairs)
    alike = [pair for pair in pairs if pair[1].seconds <= ALIKE * least]
    return max(alike, key=lambda pair: pair[0].kv_capacity_tokens)


def _chosen(own: Fit, step: DecodeStep, fitting: int, legal: int) -> str:
    if not own.fits:
        none = f"none of the {legal} that can work fits; this is the closest" if legal > 1 else "does not fit"
        return f"{none}, {gib(own.short)} a GPU short; {_figures(own, step)}"
    roomy = "" if own.ask.batch else " and hold at least half of the most tokens"
    others = f"the shortest step of those that fit{roomy}" if fitting > 1 else "the only one that fits"
    return f"{others}: {_figures(own, step)}"


def _figures(own: Fit, step: DecodeStep) -> str:
    messages = f"{step.messages} messages, {step.sent / 1e6:.1f} MB" if step.messages else "no messages"
    return (
        f"a step {_moves(own)} {step.read / 1e9:.1f} GB a GPU ({step.memory_seconds * 1e3:.2f} ms) and sends "
        f"{messages} ({step.message_seconds * 1e3:.2f} ms)"
    )


def _moves(own: Fit) -> str:
    """TensorRT-RTX writes experts that it has read, and reads them again."""
    return "moves" if own.ask.engine == "tensorrt-rtx" else "reads"


def _left(own: Fit, step: DecodeStep, best: Fit, its: DecodeStep) -> Considered:
    if not own.fits:
        alone, size = "weights alone", max(0, -own.tightest.free)
        what, size = (
            (f"{own.required:,} tokens of cache a group", own.short) if own.weights_fit else (alone, size)
        )
        why = f"{what}: {gib(size)} a GPU too much"
        return Considered(own.mapping, "no room", why, own, step)
    slower = step.seconds / its.seconds
    more = own.kv_capacity_tokens / max(best.kv_capacity_tokens, 1)
    cause = _cause(step, its, _moves(own))
    why = f"{slower:.2f} × the step" + (f": {cause}" if slower > ALIKE else "")
    if abs(more - 1) > 0.01:
        why += f"; {more:.2f} × the tokens"
    return Considered(own.mapping, "fits", why, own, step)


def _cause(step: DecodeStep, its: DecodeStep, moves: str) -> str:
    """Which of a step's two parts is longer than the chosen layout's."""
    reads, waits = step.memory_seconds - its.memory_seconds, step.message_seconds - its.message_seconds
    if reads >= waits:
        return f"{moves} {step.read / 1e9:.1f} GB a GPU, not {its.read / 1e9:.1f}"
    return f"{step.messages} messages of {step.sent / 1e6:.1f} MB, not {its.messages} of {its.sent / 1e6:.1f}"
