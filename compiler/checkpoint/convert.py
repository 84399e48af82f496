"""Weights in another format than the checkpoint's: FP8 dequantised to bf16, or dense linears block-quantised to FP8.

Only recipes and formats change: the weights themselves are converted where they are read, block by block. Stacks
of experts stay outermost, so that the repacker holds one expert at a time, and gate and up are blocked apart, as
in the releases.
"""

from __future__ import annotations

from mm2c.checkpoint.names import SCALE_SUFFIX, attention_linears, experts_module
from mm2c.config import BLOCK, ModelConfig, WeightFormats, WeightTarget
from mm2c_runtime.weights.recipe import (
    Cast,
    Concat,
    Dequantize,
    Quantize,
    QuantizeScale,
    Recipe,
    Stack,
)


def converted_formats(config: ModelConfig, formats: WeightFormats, target: WeightTarget) -> WeightFormats:
    """``formats`` after the conversion: every linear FP8, or none."""
    if target == "stored":
        return formats
    if target == "bf16":
        return WeightFormats(frozenset(), formats.dtypes)
    linears = frozenset(module for layer in range(config.layers) for module in _modules(config, layer))
    quantised = {tensor for module in linears for tensor in _tensors(module)}
    return WeightFormats(linears, tuple(item for item in formats.dtypes if item[0] not in quantised))


def converted(
    recipes: dict[str, Recipe], formats: WeightFormats, target: WeightTarget, config: ModelConfig
) -> tuple[dict[str, Recipe], WeightFormats]:
    """Recipes and formats of the full tensors in the format ``target``; ``recipes`` and ``formats`` are the stored
    ones. What already is in that format stays as it is.

    "bf16": FP8 linears and experts are dequantised in f32 and rounded. "fp8": dense attention linears and experts
    become e4m3 with an f32 scale for each 128 × 128 block, ``…_scale_inv``.
    """
    after = converted_formats(config, formats, target)
    result = dict(recipes)
    for layer in range(config.layers):
        for module in _modules(config, layer):
            if formats.of(module) == after.of(module):
                continue
            for name in _tensors(module):
                if target == "bf16":
                    result[name] = _dequantized(result[name], result.pop(name + SCALE_SUFFIX))
                else:
                    weight = result[name]
                    result[name], result[name + SCALE_SUFFIX] = _quantized(weight), _scales(weight)
    return result, after


def quantised_modules(config: ModelConfig, formats: WeightFormats, target: WeightTarget) -> tuple[str, ...]:
    """The modules of a checkpoint of ``formats`` that a build for ``target`` quantises, in the model's order."""
    if target != "fp8":
        return ()
    modules = (module for layer in range(config.layers) for module in _modules(config, layer))
    return tuple(module for module in modules if formats.of(module) == "dense")


def _modules(config: ModelConfig, layer: int) -> list[str]:
    return [*(linear.module for linear in attention_linears(config, layer)), experts_module(layer)]


def _tensors(module: str) -> tuple[str, ...]:
    if module.endswith(".experts"):
        return f"{module}.gate_up_proj", f"{module}.down_proj"
    return (f"{module}.weight",)


def _dequantized(weight: Recipe, scale: Recipe) -> Recipe:
    if isinstance(weight, Stack) and isinstance(scale, Stack):
        return Stack(tuple(_dequantized(w, s) for w, s in zip(weight.parts, scale.parts, strict=True)))
    if isinstance(weight, Concat) and isinstance(scale, Concat):
        parts = tuple(_dequantized(w, s) for w, s in zip(weight.parts, scale.parts, strict=True))
        return Concat(parts, weight.axis)
    return Cast(Dequantize(weight, scale, BLOCK, BLOCK), "bf16")


def _quantized(weight: Recipe) -> Recipe:
    if isinstance(weight, Stack):
        return Stack(tuple(_quantized(part) for part in weight.parts))
    if isinstance(weight, Concat):
        return Concat(tuple(_quantized(part) for part in weight.parts), weight.axis)
    return Quantize(weight, BLOCK, BLOCK)


def _scales(weight: Recipe) -> Recipe:
    if isinstance(weight, Stack):
        return Stack(tuple(_scales(part) for part in weight.parts))
    if isinstance(weight, Concat):
        return Concat(tuple(_scales(part) for part in weight.parts), weight.axis)
    return QuantizeScale(weight, BLOCK, BLOCK)
