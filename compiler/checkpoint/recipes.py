"""The recipe of every full graph tensor: which released tensors it is made of."""

from __future__ import annotations

from typing import cast

from mm2c.checkpoint.names import (
    EMBED,
    HEAD,
    SCALE_SUFFIX,
    attention_linears,
    expert_weight,
    experts_module,
    layer_vectors,
    outer_tensors,
    scale_shape,
)
from mm2c.config import BLOCK, ModelConfig, WeightFormats
from mm2c_runtime.weights.recipe import Computed, Concat, DType, Recipe, Source, Stack


def rope_recipes(config: ModelConfig, context: int | None = None) -> dict[str, Recipe]:
    """``rope.cos`` and ``rope.sin`` f32[context, rotary_dim / 2]; ``context`` None is the model's own."""
    positions = config.context if context is None else context
    rope = config.rope
    args = {"positions": positions, "rotary_dim": rope.rotary_dim, "theta": rope.theta, **dict(rope.scaling)}
    shape = (positions, rope.rotary_dim // 2)
    items = tuple(sorted(args.items()))
    return {"rope.cos": Computed("rope_cos", shape, items), "rope.sin": Computed("rope_sin", shape, items)}


def recipes_for_config(
    config: ModelConfig, formats: WeightFormats, *, tied: bool = False, context: int | None = None
) -> dict[str, Recipe]:
    """Recipes of all full tensors by canonical graph name, embedding first, then layer by layer, head, rope.

    ``tied``: the head is the embedding's tensor. ``context``: rows of the rope tables (None: the model's
    own).
    """
    outer = dict(outer_tensors(config))
    recipes: dict[str, Recipe] = {EMBED: _source(EMBED, formats.dtype(EMBED), outer[EMBED])}
    for layer in range(config.layers):
        recipes |= _layer(config, formats, layer)
    for name in list(outer)[1:]:
        key = EMBED if tied and name == HEAD else name
        recipes[name] = _source(key, formats.dtype(key), outer[name])
    return recipes | rope_recipes(config, context)


def _source(key: str, dtype: str, shape: tuple[int, ...]) -> Source:
    return Source(key, cast("DType", dtype), shape)


def _layer(config: ModelConfig, formats: WeightFormats, layer: int) -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {
        graph: _source(key, formats.dtype(graph), shape) for graph, key, shape in layer_vectors(config, layer)
    }
    for linear in attention_linears(config, layer):
        if formats.of(linear.module) == "fp8":
            scales = scale_shape(linear.shape, (BLOCK, BLOCK))
            recipes[linear.weight] = _source(linear.weight, "e4m3", linear.shape)
            recipes[linear.weight + SCALE_SUFFIX] = _source(linear.weight + SCALE_SUFFIX, "f32", scales)
        else:
            recipes[linear.weight] = _source(linear.weight, formats.dtype(linear.weight), linear.shape)
    return recipes | _experts(config, formats, layer)


def _experts(config: ModelConfig, formats: WeightFormats, layer: int) -> dict[str, Recipe]:
    module = experts_module(layer)
    wide, tall = (config.intermediate, config.hidden), (config.hidden, config.intermediate)
    fp8 = formats.of(module) == "fp8"

    def stacked(suffix: str, up: tuple[int, int], down: tuple[int, int], dtypes: tuple[str, str]) -> None:
        pairs, downs = [], []
        for expert in range(config.experts):
            gate_up = (_source(expert_weight(layer, expert, w) + suffix, dtypes[0], up) for w in ("w1", "w3"))
            pairs.append(Concat(tuple(gate_up), 0))
            downs.append(_source(expert_weight(layer, expert, "w2") + suffix, dtypes[1], down))
        recipes[f"{module}.gate_up_proj{suffix}"] = Stack(tuple(pairs))
        recipes[f"{module}.down_proj{suffix}"] = Stack(tuple(downs))

    recipes: dict[str, Recipe] = {}
    if fp8:
        stacked("", wide, tall, ("e4m3", "e4m3"))
        block = (BLOCK, BLOCK)
        stacked(SCALE_SUFFIX, scale_shape(wide, block), scale_shape(tall, block), ("f32", "f32"))
    else:
        dtypes = formats.dtype(f"{module}.gate_up_proj"), formats.dtype(f"{module}.down_proj")
        stacked("", wide, tall, dtypes)
    return recipes
