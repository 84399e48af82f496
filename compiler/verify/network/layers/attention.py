"""ATTENTION_INPUT and ATTENTION_OUTPUT, between which an IAttention stands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm2c.verify.network.dtypes import FLOATS, Precision, widened
from mm2c.verify.network.errors import ReplayError
from mm2c.verify.network.layers.given import tensor
from mm2c.verify.network.layers.registry import evaluates
from mm2c.verify.network.view import Evaluate, LayerView

# ``causal`` is an older name of causal_kind; whether it may be decomposed changes no result; the type of a quantised
# normalization says nothing without its scale.
_KNOWN = frozenset(
    [
        "causal",
        "causal_kind",
        "decomposable",
        "get_input",
        "get_output",
        "key_value_form",
        "key_value_lengths",
        "mask",
        "metadata",
        "name",
        "norm_op",
        "normalization_quantize_scale",
        "normalization_quantize_to_type",
        "num_inputs",
        "num_outputs",
        "num_ranks",
        "query_form",
        "query_lengths",
        "set_input",
    ]
)


@evaluates("ATTENTION_INPUT", "IAttentionInputLayer", "attention")
def attention_input(view: LayerView) -> Evaluate:
    """softmax(q · kᵀ + mask) · v of q[B, Hq, S, D], k and v [B, Hkv, L, D], in f32 and rounded once. There is no scale:
    whoever makes the network multiplies q and k. A bool mask says what is seen, another one is added; it is
    [B or 1, Hq or 1, S, L]. Its result stands for the whole attention."""
    attention = view.layer.attention
    strange = {name for name in dir(attention) if not name.startswith("_")} - _KNOWN
    if strange:
        view.refuse(f"IAttention has {sorted(strange)} in this version of TensorRT")
    view.one_of("normalization", attention.norm_op, "SOFTMAX")
    causal = view.one_of("causal mask", attention.causal_kind, "NONE", "UPPER_LEFT", "LOWER_RIGHT")
    for what in ("query_form", "key_value_form"):
        view.one_of(what, getattr(attention, what), "PADDED_BHND")
    for what in ("query_lengths", "key_value_lengths", "normalization_quantize_scale"):
        if getattr(attention, what) is not None:
            view.refuse(what)
    if attention.num_ranks != 1:
        view.refuse(f"spread over {attention.num_ranks} ranks")
    masked = attention.mask is not None
    view.only(*range(4 if masked else 3))
    if masked != view.given(3) or (masked and causal != "NONE"):
        view.refuse(f"a mask: {masked}, as input 3: {view.given(3)}, causal: {causal}")
    facts = [view.input(index) for index in range(3)]
    if {f.dtype for f in facts} - {facts[0].dtype} or facts[0].dtype not in FLOATS:
        view.refuse(f"types {[f.dtype for f in facts]}")
    if any(len(f.shape) != 4 for f in (*facts, *([view.input(3)] if masked else []))):
        view.refuse("inputs that do not have four axes")
    if masked and view.input(3).dtype not in ("BOOL", facts[0].dtype):
        view.refuse(f"a mask of {view.input(3).dtype}")

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        q, k, v = (tensor(given, index) for index in range(3))
        if (
            q.shape[1] % k.shape[1]
            or k.shape[:3] != v.shape[:3]
            or (q.shape[0], q.shape[3])
            != (
                k.shape[0],
                k.shape[3],
            )
        ):
            raise ReplayError(f"layer {view.name}: q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}")
        mask = tensor(given, 3) if masked else _causal(causal, q.shape[2], k.shape[2])
        return (attend(q, k, v, mask),)

    return evaluate


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """One row of the batch at a time; query head h reads key head h · Hkv / Hq."""
    rows, heads, steps, _ = q.shape
    kv_heads = k.shape[1]
    out = q.new_empty([rows, heads, steps, v.shape[3]])
    if mask is not None:
        mask = mask.expand(rows, heads, steps, k.shape[2])
    for row in range(rows):
        grouped = widened(q[row]).reshape(kv_heads, heads // kv_heads * steps, -1)
        scores = (grouped @ widened(k[row]).mT).reshape(heads, steps, -1)
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask[row], -torch.inf)
        elif mask is not None:
            scores = scores + widened(mask[row])
        shares = torch.softmax(scores, -1).reshape(kv_heads, heads // kv_heads * steps, -1)
        out[row] = (shares @ widened(v[row])).reshape(heads, steps, -1).to(q.dtype)
    return out


def _causal(kind: str, steps: int, length: int) -> Tensor | None:
    if kind == "NONE":
        return None
    shift = length - steps if kind == "LOWER_RIGHT" else 0
    return torch.arange(length) <= torch.arange(steps)[:, None] + shift


@evaluates("ATTENTION_OUTPUT", "IAttentionOutputLayer", "attention")
def attention_output(view: LayerView) -> Evaluate:
    view.only(0)

    def evaluate(precision: Precision, given: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return (tensor(given, 0),)

    return evaluate
