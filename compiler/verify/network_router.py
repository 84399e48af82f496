"""Where the choice of experts hangs on rounding: a token that then differs says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm2c.dialect import ops

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Router:
    """Names of what a node of routed experts chooses by: scores before the sigmoid, and what is added behind it."""

    logits: str
    bias: str
    top_k: int


def find_routers(model: onnx.ModelProto) -> list[Router]:
    """Of a plan's graph, in the order of its layers."""
    found = []
    for node in model.graph.node:
        top_k = next((a.i for a in node.attribute if a.name == "top_k"), None)
        if top_k is not None and node.op_type in ops:
            names = [parameter.name for parameter in ops[node.op_type].schema.inputs]
            found.append(
                Router(node.input[names.index("logits")], node.input[names.index("bias")], int(top_k))
            )
    return found


@dataclass(frozen=True)
class Choice:
    """What one router said of a step's tokens. ``experts``: bool[batch, seq, experts], the chosen ones; ``margin``:
    f32[batch, seq], how far the last chosen one lies above the first that was not, infinite where all are chosen or the
    layer does not compute the token; ``spread``: the largest number before the sigmoid."""

    experts: NDArray[np.bool_]
    margin: NDArray[np.float32]
    spread: float


def choice_of(router: Router, logits: Any, bias: Any, batch: int, seq: int) -> Choice:
    """``logits`` [tokens, experts] of all tokens of the step, or of each row's last one."""
    count = logits.shape[-1]
    logits = np.asarray(logits, np.float64).reshape(batch, -1, count)
    scores = 1 / (1 + np.exp(-logits)) + np.asarray(bias, np.float64)
    experts = np.zeros((batch, seq, count), bool)
    margin = np.full((batch, seq), np.inf, np.float32)
    own = seq - logits.shape[1]
    order = np.argsort(-scores, -1, kind="stable")[..., : router.top_k]
    np.put_along_axis(experts[:, own:], order, True, -1)
    if router.top_k < count:
        ranked = np.sort(scores, -1)
        margin[:, own:] = ranked[..., -router.top_k] - ranked[..., -router.top_k - 1]
    return Choice(experts, margin, float(np.abs(logits).max()))


def unsure_tokens(wanted: list[Choice], found: list[Choice], share: float) -> NDArray[np.bool_]:
    """bool[batch, seq]: tokens for which the two chose other experts where the numbers before the sigmoid may be off by
    ``share`` of the largest, and that is enough to change the order; and the tokens behind them in the same rows, which
    attend to them in the layers that follow.

    Two scores are each off by at most a quarter of what the numbers are, the sigmoid's steepest slope."""
    shape = wanted[0].margin.shape
    own, before = np.zeros(shape, bool), np.zeros(shape, bool)
    for layer, (want, got) in enumerate(zip(wanted, found, strict=True)):
        turned = (want.experts != got.experts).any(-1) & (want.margin <= 2 * 0.25 * share * want.spread)
        own |= turned
        if layer < len(wanted) - 1:
            before |= turned
    unsure: NDArray[np.bool_] = own | np.logical_or.accumulate(before, -1)
    return unsure
