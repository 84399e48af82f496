"""``quantization_config``: the released FP8 blocks, or a refusal that names what is not compiled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm2c.checkpoint.config_keys import QUANT_COMPILED, QUANT_IRRELEVANT
from mm2c.checkpoint.refuse import did_you_mean, refuse
from mm2c.config import BLOCK


@dataclass(frozen=True)
class QuantConfig:
    """Block FP8 of the linears: one f32 scale per ``block`` of e4m3 weights, but for the modules left
    alone."""

    block: tuple[int, int]
    modules_to_not_convert: tuple[str, ...]

    def skips(self, module: str) -> bool:
        """Whether ``modules_to_not_convert`` names the module, by transformers' rule: a prefix up to a dot,
        read as a regular expression, or a plain suffix."""
        return any(
            re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", module) or module.endswith(pattern)
            for pattern in self.modules_to_not_convert
        )


def parse_quant(value: Any, path: Path) -> QuantConfig | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise refuse(path, "quantization_config", value, "expected an object or null")
    convert = "convert the checkpoint to the released FP8 blocks or to bf16 first"

    def no(key: str, why: str, remedy: str = convert) -> Exception:
        return refuse(path, f"quantization_config.{key}", value.get(key), why, remedy)

    method = value.get("quant_method")
    if method != "fp8":
        near = did_you_mean(method, ("fp8",)) if isinstance(method, str) else ""
        raise no("quant_method", "only the released block FP8 ('fp8') is compiled", near or convert)
    for key in value:
        if key not in QUANT_COMPILED and key not in QUANT_IRRELEVANT:
            raise no(key, "unknown key", did_you_mean(key, QUANT_COMPILED))
    if value.get("fmt", "float8_e4m3fn") not in ("float8_e4m3fn", "e4m3"):
        raise no("fmt", "only float8_e4m3fn weights are compiled")
    if value.get("activation_scheme", "dynamic") != "dynamic":
        raise no("activation_scheme", "activations are scaled dynamically; static scales are not compiled")
    block = value.get("weight_block_size")
    if block != [BLOCK, BLOCK]:
        raise no("weight_block_size", f"scales of {BLOCK}x{BLOCK} blocks are compiled")
    skipped = value.get("modules_to_not_convert") or []
    if not isinstance(skipped, list) or not all(isinstance(item, str) for item in skipped):
        raise no("modules_to_not_convert", "expected a list of module names", "")
    for pattern in skipped:
        try:
            re.compile(pattern)
        except re.error as error:
            raise no("modules_to_not_convert", f"{pattern!r} is no module name: {error}", "") from error
    return QuantConfig((BLOCK, BLOCK), tuple(skipped))
