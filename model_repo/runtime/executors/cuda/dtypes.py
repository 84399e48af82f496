"""Element types by the names that programs use."""

from __future__ import annotations

import torch

TORCH: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i32": torch.int32,
    "i64": torch.int64,
    "bool": torch.bool,
    "e4m3": torch.float8_e4m3fn,
    "u8": torch.uint8,
}
NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in TORCH.items()}
ITEMSIZE: dict[str, int] = {name: dtype.itemsize for name, dtype in TORCH.items()}
KV: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}  # of caches
SAFETENSORS: dict[str, str] = {
    "F32": "f32",
    "BF16": "bf16",
    "F16": "f16",
    "I32": "i32",
    "I64": "i64",
    "BOOL": "bool",
    "F8_E4M3": "e4m3",
    "U8": "u8",
}
