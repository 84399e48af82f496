"""What the two expert ops share: each expert's SwiGLU over the tokens that chose it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from onnx import ValueInfoProto, helper

from mm2c.dialect.body import FLOAT, INT64, Body

if TYPE_CHECKING:
    from torch import Tensor


def scan_experts(
    b: Body,
    stacked: Sequence[str],
    dense: Callable[..., tuple[str, str]],
    *,
    weights: str = "weights",
    ids: str = "ids",
) -> str:
    """Σ over experts of weight · w2 · (silu(gate) · up), for the op's input ``x`` and the values ``weights`` and
    ``ids``.

    ``stacked`` are the op's weight inputs, first axis experts. A Scan walks that axis without copying and,
    unlike Gather and Slice, takes e4m3; ``dense(block, *slices)`` turns one expert's slices into w13[2I, H]
    and w2[H, I] of any float type. Experts that no token chose are skipped, so few tokens cost little too:
    gathering their experts' weights is several times slower.
    """
    local = b.Sub(b.Cast(ids, to=INT64), b.attribute("first_expert"))
    start = b.Expand(b.Cast(b.ConstantOfShape(b.ints(1)), to=FLOAT), b.Shape("x"))

    each = b.block()
    slices = [f"{name}_of_expert" for name in stacked]
    pairs = each.NonZero(each.Equal(local, "expert"))  # [2, n]: token, place among its top_k
    hits = each.size(pairs, 1)

    run = each.block()
    token = run.Gather(pairs, run.scalar(0), axis=0)
    w13, w2 = dense(run, *slices)
    hidden = run.MatMul(run.Gather("x", token, axis=0), _transposed_like_x(run, w13))
    gate, up = run.Split(hidden, outputs=2, axis=1, num_outputs=2)
    active = run.Mul(run.Mul(gate, run.Sigmoid(gate)), up)
    y = run.Cast(run.MatMul(active, _transposed_like_x(run, w2)), to=FLOAT)
    weight = run.Unsqueeze(run.GatherND(weights, run.Transpose(pairs, perm=[1, 0])), run.ints(1))
    added = run.ScatterND(
        "sum_before", run.Unsqueeze(token, run.ints(1)), run.Mul(y, weight), reduction="add"
    )
    skip = each.block()
    same = skip.Identity("sum_before")
    total = each.If(
        each.Greater(hits, each.scalar(0)), then_branch=run.graph([added]), else_branch=skip.graph([same])
    )
    following = each.Add("expert", each.scalar(1))

    # ONNX Runtime asks for the rank of what a Scan carries, also where that of x is not known yet
    before = helper.make_tensor_value_info("sum_before", FLOAT, [None, None])
    carried = [before, *(ValueInfoProto(name=name) for name in ("expert", *slices))]
    result, _ = b.Scan(
        start,
        b.scalar(0),
        *stacked,
        outputs=2,
        num_scan_inputs=len(stacked),
        body=each.graph([total, following], carried),
    )
    return str(b.CastLike(result, "x"))


def _transposed_like_x(block: Body, weight: str) -> str:
    return str(block.Transpose(block.CastLike(weight, "x"), perm=[1, 0]))


def experts_reference(
    x: Tensor,
    weights: Tensor,
    ids: Tensor,
    first: int,
    count: int,
    dense: Callable[[int], tuple[Tensor, Tensor]],
) -> Tensor:
    """x[T, H], weights[T, k], ids[T, k] → [T, H]; ``dense(e)`` gives w13[2I, H], w2[H, I] of local expert e.

    Sums in f32. Experts outside ``first`` … ``first + count - 1`` contribute nothing.
    """
    import torch

    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(count):
        token, place = torch.where(ids == expert + first)
        if not len(token):
            continue
        w13, w2 = dense(expert)
        gate, up = (x[token] @ w13.to(x.dtype).T).chunk(2, -1)
        y = (torch.nn.functional.silu(gate) * up) @ w2.to(x.dtype).T
        total.index_add_(0, token, y.float() * weights[token, place, None])
    return total.to(x.dtype)
