"""TensorRT's data types as torch's, in both precisions of a replay."""

from __future__ import annotations

from typing import Literal

import torch

# "declared": every layer's result is rounded to the type that the network declares. "wide": bf16 and f16 are held in
# f32, so that a difference is an error of structure and not of rounding.
Precision = Literal["declared", "wide"]

DECLARED = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "FP8": torch.float8_e4m3fn,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}
_WIDE = {**DECLARED, "HALF": torch.float32, "BF16": torch.float32}
_TYPES = {"declared": DECLARED, "wide": _WIDE}

NARROW_FLOATS = (torch.bfloat16, torch.float16)
FLOATS = frozenset({"FLOAT", "HALF", "BF16"})
INTEGERS = frozenset({"INT8", "UINT8", "INT32", "INT64"})


def torch_dtype(name: str, precision: Precision) -> torch.dtype:
    """The torch dtype that holds TensorRT's ``name`` ("BF16"); KeyError for one that no replay holds."""
    return _TYPES[precision][name]


def widened(x: torch.Tensor) -> torch.Tensor:
    """x in f32 where it is bf16 or f16, else itself."""
    return x.float() if x.dtype in NARROW_FLOATS else x
