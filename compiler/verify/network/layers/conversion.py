"""CAST and IDENTITY."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm2c.verify.network.dtypes import DECLARED, FLOATS, INTEGERS, Precision, torch_dtype
from mm2c.verify.network.errors import ReplayError
from mm2c.verify.network.layers.given import tensor
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView

E4M3_MAX = 448.0
_FROM = FLOATS | INTEGERS | {"BOOL", "FP8"}


@evaluates("CAST", "ICastLayer", "to_type")
def cast(view: LayerView) -> Evaluate:
    """To integers towards zero; what the type cannot hold has no defined result. To e4m3 the nearest, and ±448 beyond
    it, as ONNX's Cast has it unless told otherwise."""
    view.only(0)
    source, target = view.input(0).dtype, str(view.layer.to_type.name)
    if target not in DECLARED or source not in _FROM:
        view.refuse(f"{source} to {target}")
    if "FP8" in (source, target) and not {source, target} <= FLOATS | {"FP8"}:
        view.refuse(f"{source} to {target}")
    if view.outputs[0].dtype != target:
        view.refuse(f"to {target}, declared as {view.outputs[0].dtype}")

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return (converted(tensor(given, 0), torch_dtype(target, precision), view.name),)

    return evaluate


def converted(x: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if dtype == torch.float8_e4m3fn and x.dtype != dtype:
        return x.float().clamp(-E4M3_MAX, E4M3_MAX).to(dtype)  # torch makes NaN of what is beyond
    if not dtype.is_floating_point and dtype != torch.bool and x.dtype != torch.bool and x.numel():
        limits = torch.iinfo(dtype)
        if x.is_floating_point() or torch.iinfo(x.dtype).max > limits.max:
            low, high = float(x.min()), float(x.max())
            if not (limits.min <= low and high <= limits.max):
                raise ReplayError(f"layer {name}: {low} … {high} as {dtype}")
    return x.to(dtype)


@evaluates("IDENTITY", "IIdentityLayer")
def identity(view: LayerView) -> Evaluate:
    view.only(0)
    if view.outputs[0].dtype != view.input(0).dtype:
        view.refuse(f"{view.input(0).dtype} to {view.outputs[0].dtype}")

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return (tensor(given, 0),)

    return evaluate
