"""The model on every kind of GPU: on how many it fits, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm2c.errors import UserError
from mm2c.plan.ask import Ask
from mm2c.plan.choice import Plan, make_plan
from mm2c.plan.gpus import GPUS, USUAL, Gpu
from mm2c.plan.report import asked_json, gpu_json, layout_json, model_json, step_json


def overview(
    ask: Ask, *, every: bool = False, gpus: int = 0, tp: int = 0, ep: int = 0, dp: int = 0
) -> list[Plan]:
    """A plan for each usual kind of GPU, or for ``every`` kind; on the fewest that suffice where their number was not
    given. Raises UserError where no layout is legal."""
    kinds: Sequence[Gpu] = [gpu for gpu in GPUS if every or gpu.name in USUAL]
    plans, refused = [], None
    for gpu in kinds:
        try:
            plans.append(make_plan(ask, gpu, gpus=gpus, tp=tp, ep=ep, dp=dp))
        except UserError as error:
            refused = error
    if refused is not None and not plans:
        raise refused
    return plans


def overview_json(plans: Sequence[Plan], title: str) -> dict[str, Any]:
    ask = plans[0].ask
    return {
        "model": model_json(ask, title),
        "asked": asked_json(ask),
        "gpus": [
            {
                "gpu": gpu_json(plan.gpu, ask),
                "gpus": plan.best.mapping.gpus,
                "layout": layout_json(plan.best.mapping),
                "fits": plan.fits,
                "short_bytes": plan.best.short,
                "kv_capacity_tokens": plan.best.kv_capacity_tokens,
                "decode_step": step_json(plan.step),
            }
            for plan in plans
        ],
    }
