"""The trace stage: configuration in, dialect graph with recipes out."""

from __future__ import annotations

from mm2c.config import BuildOptions, ModelConfig, WeightFormats
from mm2c.trace.cleanup import clean
from mm2c.weights.rank_graph import RankGraph
from mm2c_runtime.weights.recipe import Recipe


def trace(
    config: ModelConfig,
    formats: WeightFormats,
    options: BuildOptions,
    recipes: dict[str, Recipe],
    *,
    activation: str = "f32",
) -> RankGraph:
    """The whole model as one graph of the dialect (rows cache), before any sharding.

    Inputs, outputs and initializer names are the graph contract's; batch, seq and kv_len are dynamic.
    Initializers have shape and dtype but no data, and no weight is ever allocated. ``recipes`` are those of
    the full tensors by canonical name; exactly the graph's tensors must have one, of the same shape and
    dtype. ``activation`` ("f32", "bf16" or "f16") is the dtype of hidden states, caches and logits.
    ``options`` gives the context (rows of the rope tables; 0: the model's own) and ``all_logits`` (logits
    [batch, seq, vocab] instead of the last real token's).

    Raises ValueError for recipes that do not fit the graph.
    """
    from mm2c.trace.export import Step, export_onnx
    from mm2c.trace.official import build_on_meta, torch_dtype

    dtype = torch_dtype(activation)
    module = build_on_meta(config, formats)
    step = Step(module, config, options.context or config.context, options.all_logits, dtype)
    model = clean(export_onnx(step, config))
    graph = RankGraph(model, dict(recipes))
    check_recipes(graph)
    return graph


def check_recipes(graph: RankGraph) -> None:
    """Every initializer has a recipe of its shape and dtype, and no recipe is left over; else ValueError."""
    onnx_name = {"e4m3": "FLOAT8E4M3FN", "bf16": "BFLOAT16", "f32": "FLOAT", "f16": "FLOAT16"}
    initializers = graph.model.graph.initializers
    wrong = [f"{name}: the graph has no such tensor" for name in graph.recipes if name not in initializers]
    for name, value in initializers.items():
        recipe = graph.recipes.get(name)
        declared = (value.dtype.name if value.dtype else None, tuple(value.shape or ()))
        if recipe is None:
            wrong.append(f"{name}: no recipe")
        elif (onnx_name[recipe.dtype], recipe.shape) != declared:
            wrong.append(f"{name}: the graph has {declared}, the recipe {(recipe.dtype, recipe.shape)}")
    if wrong:
        raise ValueError("recipes do not fit the traced graph:\n" + "\n".join(wrong[:10]))
