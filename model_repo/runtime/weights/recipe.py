"""How a rank's tensor is made of checkpoint tensors: a small expression tree with a JSON form.

Trace writes the recipe of each full tensor, sharding passes narrow it, lowerings change its layout; the
repacker evaluates it once, reading only the bytes it names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

DType = Literal["e4m3", "bf16", "f32", "f16"]
ITEMSIZE: dict[str, int] = {"e4m3": 1, "bf16": 2, "f32": 4, "f16": 2}


@dataclass(frozen=True)
class Source:
    """One tensor of the checkpoint, whole."""

    key: str
    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Computed:
    """A table made from the configuration: ``rope_cos`` or ``rope_sin`` of [positions, rotary_dim / 2] f32.

    ``args`` is the sorted items of: theta, rotary_dim, positions, and the rope scaling's own keys.
    """

    kind: Literal["rope_cos", "rope_sin"]
    shape: tuple[int, ...]
    args: tuple[tuple[str, Any], ...]
    dtype: DType = "f32"


@dataclass(frozen=True)
class Slice:
    of: Recipe
    axis: int
    start: int
    stop: int

    @property
    def dtype(self) -> DType:
        return self.of.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        s = self.of.shape
        return (*s[: self.axis], self.stop - self.start, *s[self.axis + 1 :])


@dataclass(frozen=True)
class Concat:
    parts: tuple[Recipe, ...]
    axis: int

    @property
    def dtype(self) -> DType:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        s = self.parts[0].shape
        return (*s[: self.axis], sum(p.shape[self.axis] for p in self.parts), *s[self.axis + 1 :])


@dataclass(frozen=True)
class Stack:
    """Parts of equal shape along a new first axis (the experts of a layer)."""

    parts: tuple[Recipe, ...]

    @property
    def dtype(self) -> DType:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.parts), *self.parts[0].shape)


@dataclass(frozen=True)
class Dequantize:
    """Block-scaled e4m3 over the last two axes -> f32: w[n, k] * scale[n // block_n, k // block_k]."""

    weight: Recipe
    scale: Recipe
    block_n: int
    block_k: int

    @property
    def dtype(self) -> DType:
        return "f32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape


@dataclass(frozen=True)
class Cast:
    of: Recipe
    to: DType

    @property
    def dtype(self) -> DType:
        return self.to

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape


@dataclass(frozen=True)
class Transpose:
    of: Recipe
    perm: tuple[int, ...]

    @property
    def dtype(self) -> DType:
        return self.of.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.of.shape[p] for p in self.perm)


@dataclass(frozen=True)
class Interleave:
    """First half and second half along ``axis`` become alternating rows (gate 0, up 0, gate 1, up 1 …)."""

    of: Recipe
    axis: int

    @property
    def dtype(self) -> DType:
        return self.of.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape


@dataclass(frozen=True)
class Pad:
    """Grow ``axis`` to ``to`` entries, the new ones holding ``value``."""

    of: Recipe
    axis: int
    to: int
    value: float = 0.0

    @property
    def dtype(self) -> DType:
        return self.of.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        s = self.of.shape
        return (*s[: self.axis], self.to, *s[self.axis + 1 :])


@dataclass(frozen=True)
class Repeat:
    """Each entry along ``axis`` ``times`` times in a row: block scales of blocks that are divided."""

    of: Recipe
    axis: int
    times: int

    @property
    def dtype(self) -> DType:
        return self.of.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        s = self.of.shape
        return (*s[: self.axis], s[self.axis] * self.times, *s[self.axis + 1 :])


@dataclass(frozen=True)
class Quantize:
    """e4m3 of a dense weight over its last two axes, divided by the scale of its block (``QuantizeScale``)."""

    of: Recipe
    block_n: int
    block_k: int

    @property
    def dtype(self) -> DType:
        return "e4m3"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape


@dataclass(frozen=True)
class QuantizeScale:
    """f32 scale of each block_n × block_k block over the last two axes of a dense weight: max |w| / 448."""

    of: Recipe
    block_n: int
    block_k: int

    @property
    def dtype(self) -> DType:
        return "f32"

    @property
    def shape(self) -> tuple[int, ...]:
        *lead, n, k = self.of.shape
        return (*lead, -(-n // self.block_n), -(-k // self.block_k))


Recipe = (
    Source
    | Computed
    | Slice
    | Concat
    | Stack
    | Dequantize
    | Cast
    | Transpose
    | Interleave
    | Pad
    | Repeat
    | Quantize
    | QuantizeScale
)


def children(recipe: Recipe) -> tuple[Recipe, ...]:
    """What a recipe is made of; nothing for a source or a computed table."""
    if isinstance(recipe, (Source, Computed)):
        return ()
    if isinstance(recipe, (Concat, Stack)):
        return recipe.parts
    if isinstance(recipe, Dequantize):
        return recipe.weight, recipe.scale
    return (recipe.of,)


def dequantize(weight: Recipe, scale: Recipe, block_n: int, block_k: int) -> Recipe:
    """``Dequantize`` of a weight whose joined parts may each have blocks of their own.

    Gate and up of an expert are one tensor; where their rows are no multiple of ``block_n``, up begins in the
    middle of a block. Then the parts are dequantised first and joined after.
    """
    if isinstance(weight, Stack) and isinstance(scale, Stack):
        parts = tuple(
            dequantize(w, s, block_n, block_k) for w, s in zip(weight.parts, scale.parts, strict=True)
        )
        if any(isinstance(part, Concat) for part in parts):
            return Stack(parts)
    if not (isinstance(weight, Concat) and isinstance(scale, Concat) and weight.axis == scale.axis == 0):
        return Dequantize(weight, scale, block_n, block_k)
    if any(part.shape[0] % block_n for part in weight.parts[:-1]):
        pairs = zip(weight.parts, scale.parts, strict=True)
        return Concat(tuple(dequantize(w, s, block_n, block_k) for w, s in pairs), 0)
    return Dequantize(weight, scale, block_n, block_k)
