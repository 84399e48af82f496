"""What TensorRT's engine inspector says, which depends on the verbosity that the plan was built with."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# a tensor's type within its format, as in "Row major linear BFloat16 format" or "Half"
_TYPES = {
    "BF16": r"bf16|bfloat16",
    "FP16": r"fp16|half",
    "FP8": r"fp8|float8",
    "FP32": r"fp32|float",
    "INT64": r"int64",
    "INT32": r"int32",
    "INT8": r"int8",
    "BOOL": r"bool",
}


@dataclass(frozen=True)
class Layers:
    """``detailed`` False: the plan holds names alone, so that ``kinds`` and ``precision`` are empty."""

    layers: int
    kinds: dict[str, int]
    precision: dict[str, int]
    detailed: bool


def layers_of(text: str) -> Layers:
    """Of the JSON that the inspector gives of an engine. Raises LookupError where it is none, or without layers."""
    try:
        entries = list(json.loads(text)["Layers"])
    except (ValueError, KeyError, TypeError):
        raise LookupError("TensorRT's inspector tells nothing of this plan") from None
    kinds: Counter[str] = Counter()
    precision: Counter[str] = Counter()
    known = [entry for entry in entries if isinstance(entry, dict)]
    for entry in known:
        kinds[str(entry.get("LayerType", "unknown"))] += 1
        precision[_type(entry.get("Outputs") or ())] += 1
    return Layers(len(entries), dict(kinds.most_common()), dict(precision.most_common()), bool(known))


def _type(outputs: Iterable[Any]) -> str:
    """Of a layer's first output."""
    for output in outputs:
        if isinstance(output, dict):
            text = str(output.get("Format/Datatype", output.get("Datatype", "")))
            for name, pattern in _TYPES.items():
                if re.search(pattern, text, re.IGNORECASE):
                    return name
        break
    return "unknown"
