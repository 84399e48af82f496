"""Sizes of the values in a decoder layer, in terms of B rows, S tokens of each, and P tokens of an exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Dim = int | str
ROWS, TOKENS, FLAT, EXCHANGED = "B", "S", "B·S", "P"


@dataclass(frozen=True)
class Typed:
    """``dtype`` as recipes name it ("bf16"), empty where unknown; ``shape`` None where unknown."""

    dtype: str = ""
    shape: tuple[Dim, ...] | None = None

    def __str__(self) -> str:
        sizes = "" if self.shape is None else f"[{', '.join(map(str, self.shape))}]"
        return f"{self.dtype} {sizes}".strip()


UNKNOWN = Typed()
Rule = Callable[[list[Typed], dict[str, Any]], list[Typed]]


def infer(
    op: str, inputs: list[Typed], attributes: dict[str, Any], constants: Mapping[int, list[int]]
) -> list[Typed]:
    """What a node gives, as far as it is known. ``constants``: values of integer inputs by their place.

    Ops without a rule give values of the first input's dtype and of unknown size.
    """
    if op == "Reshape":
        return [_reshaped(inputs[0], constants.get(1))]
    if op == "Split":
        return _split(inputs[0], constants.get(1), attributes)
    rule = _RULES.get(op)
    if rule is None or not inputs:
        return [Typed(inputs[0].dtype if inputs else "")]
    return rule(inputs, attributes)


def _like_first(inputs: list[Typed], attributes: dict[str, Any]) -> list[Typed]:
    return [inputs[0]]


def _added(inputs: list[Typed], attributes: dict[str, Any]) -> list[Typed]:
    return [max(inputs, key=lambda value: len(value.shape or ()))]


def _linear(inputs: list[Typed], attributes: dict[str, Any]) -> list[Typed]:
    """x[…, K] and w[N, K] give […, N]."""
    x, w = inputs[:2]
    return [Typed(x.dtype, None if None in (x.shape, w.shape) else (*_front(x), (w.shape or ("?",))[0]))]


def _product(inputs: list[Typed], attributes: dict[str, Any]) -> list[Typed]:
    x, w = inputs[:2]
    return [Typed(x.dtype, None if None in (x.shape, w.shape) else (*_front(x), (w.shape or ("?",))[-1]))]


def _routed(inputs: list[Typed], attributes: dict[str, Any]) -> list[Typed]:
    shape = None if inputs[0].shape is None else (*_front(inputs[0]), attributes.get("top_k", "k"))
    return [Typed("f32", shape), Typed("i32", shape)]


def _attended(inputs: list[Typed], attributes: dict[str, Any]) -> list[Typed]:
    q, caches = inputs[0], inputs[-2:]
    return [Typed(q.dtype, q.shape), *caches]


def _collected(inputs: list[Typed], attributes: dict[str, Any]) -> list[Typed]:
    x, kind = inputs[0], attributes.get("collective_operation")
    if x.shape is None or kind == "all_reduce":
        return [x]
    axis, ranks = attributes.get("axis", 0) % len(x.shape), attributes.get("group_size", 1)
    sizes = list(x.shape)
    sizes[axis] = _times(sizes[axis], ranks) if kind == "all_gather" else _over(sizes[axis], ranks)
    return [Typed(x.dtype, tuple(sizes))]


def _last_token(inputs: list[Typed], attributes: dict[str, Any]) -> list[Typed]:
    x = inputs[0]
    return [Typed(x.dtype, None if x.shape is None else (x.shape[0], *x.shape[2:]))]


def _cut(inputs: list[Typed], attributes: dict[str, Any]) -> list[Typed]:
    """A group's own tokens out of those of an exchange."""
    x = inputs[0]
    known = x.shape is not None and x.shape[0] == EXCHANGED
    return [Typed(x.dtype, (FLAT, *(x.shape or ())[1:]) if known else None)]


def _transposed(inputs: list[Typed], attributes: dict[str, Any]) -> list[Typed]:
    x, order = inputs[0], attributes.get("perm")
    known = x.shape is not None and order is not None and len(order) == len(x.shape)
    return [Typed(x.dtype, tuple((x.shape or ())[i] for i in order or ()) if known else None)]


def _reshaped(x: Typed, sizes: list[int] | None) -> Typed:
    """To tokens one after the other where the sizes are a constant, back to rows where they are a step's."""
    if x.shape is None:
        return x
    if sizes is None:
        return Typed(x.dtype, (ROWS, TOKENS, x.shape[-1]) if x.shape[0] == FLAT else None)
    flat = x.shape[:2] == (ROWS, TOKENS) or x.shape[0] == FLAT
    return Typed(x.dtype, tuple((FLAT if flat else x.shape[0]) if size == -1 else size for size in sizes))


def _split(x: Typed, widths: list[int] | None, attributes: dict[str, Any]) -> list[Typed]:
    count = len(widths) if widths else attributes.get("num_outputs", 1)
    sizes: list[Dim] = list(widths) if widths else ["?"] * count
    return [Typed(x.dtype, None if x.shape is None else (*_front(x), size)) for size in sizes]


def _front(x: Typed) -> tuple[Dim, ...]:
    return (x.shape or ())[:-1]


def _times(size: Dim, count: int) -> Dim:
    return size * count if isinstance(size, int) else f"{count}·{size}"


def _over(size: Dim, count: int) -> Dim:
    if isinstance(size, int):
        return size // count
    return size.removeprefix(f"{count}·") if size.startswith(f"{count}·") else f"{size}/{count}"


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Cast", "CastLike", "Identity", "RMSNormalization", "Where"), _like_first),
    **dict.fromkeys(("Add", "Mul", "Sub"), _added),
    **dict.fromkeys(("M2Fp8Linear", "M2DenseLinear"), _linear),
    **dict.fromkeys(("M2MoeExpertsFp8", "M2MoeExpertsBf16", "M2MoeFp8", "M2MoeBf16"), _like_first),
    **dict.fromkeys(("M2Attention", "M2PagedAttention"), _attended),
    "M2AddRmsNorm": lambda inputs, attributes: [inputs[0], inputs[0]],
    "M2RouterLinear": lambda inputs, attributes: [Typed("f32", _linear(inputs, attributes)[0].shape)],
    "M2QkSumSquares": lambda inputs, attributes: [
        Typed("f32", None if inputs[0].shape is None else (*_front(inputs[0]), 2))
    ],
    "M2MoeRouting": _routed,
    "DistCollective": _collected,
    "MatMul": _product,
    "Transpose": _transposed,
    "GatherND": _last_token,
    "Slice": _cut,
    "Pad": lambda inputs, attributes: [
        Typed(inputs[0].dtype, None if inputs[0].shape is None else (EXCHANGED, *inputs[0].shape[1:]))
    ],
}
