"""CONSTANT, SHAPE and FILL: layers that make their values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mm2c.verify.network.dtypes import Precision, torch_dtype
from mm2c.verify.network.layers.conversion import converted
from mm2c.verify.network.layers.given import numbers, tensor
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView


@evaluates("CONSTANT", "IConstantLayer", "shape", "weights")
def constant(view: LayerView) -> Evaluate:
    """Types that NumPy lacks are refused: the binding gives no way to their bytes."""
    weights = view.layer.weights
    if not isinstance(weights, np.ndarray):
        view.refuse(f"a constant of {weights.dtype.name}")
    value = torch.from_numpy(np.array(weights)).reshape(
        tuple(view.layer.shape)
    )  # a copy: the parser owns the memory
    if value.dtype != torch_dtype(view.outputs[0].dtype, "declared"):
        view.refuse(f"{value.dtype} declared as {view.outputs[0].dtype}")

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return (value.to(torch_dtype(view.outputs[0].dtype, precision)),)

    return evaluate


@evaluates("SHAPE", "IShapeLayer")
def shape(view: LayerView) -> Evaluate:
    view.only(0)

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return (torch.tensor(list(tensor(given, 0).shape), dtype=torch.int64),)

    return evaluate


@evaluates("FILL", "IFillLayer", "alpha", "beta", "is_alpha_beta_int64", "operation", "shape", "to_type")
def fill(view: LayerView) -> Evaluate:
    """LINSPACE: alpha + Σ beta[d] · index[d], alpha and beta as inputs 1 and 2."""
    view.one_of("operation", view.layer.operation, "LINSPACE")
    view.only(0, 1, 2)
    facts = view.outputs[0]
    if facts.dtype not in ("INT32", "INT64", "FLOAT"):
        view.refuse(f"a range of {facts.dtype}")
    if not (view.given(1) and view.given(2)):
        view.refuse("alpha and beta as attributes")  # read back in f32 or i64 by turns: the inputs are exact
    ends = {view.input(1).dtype, view.input(2).dtype}
    if len(ends) > 1 or not (ends <= {facts.dtype} or (ends == {"INT64"} and facts.dtype == "INT32")):
        view.refuse(f"alpha {view.input(1).dtype} and beta {view.input(2).dtype} of a range of {facts.dtype}")
    fixed = None if view.given(0) else [int(n) for n in view.layer.shape]

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        sizes = numbers(tensor(given, 0)) if fixed is None else fixed
        made = tensor(given, 1).reshape(()).expand(sizes).clone()
        for axis, step in enumerate(tensor(given, 2).reshape(-1)):
            line = torch.arange(sizes[axis], dtype=made.dtype) * step
            made += line.reshape([-1 if d == axis else 1 for d in range(len(sizes))])
        return (converted(made, torch_dtype(facts.dtype, precision), view.name),)

    return evaluate
