"""Tensor names: the canonical ones of the graph, the released ones of the checkpoint, and their full
shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mm2c.config import ModelConfig

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
SCALE_SUFFIX = "_scale_inv"
EMBED, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclass(frozen=True)
class Linear:
    """A linear of the checkpoint that may be block-quantised: its released weight, and its module in the
    graph."""

    weight: str
    module: str
    shape: tuple[int, int]


def attention_linears(config: ModelConfig, layer: int) -> Iterator[Linear]:
    shapes = {
        "q_proj": (config.q_width, config.hidden),
        "k_proj": (config.kv_width, config.hidden),
        "v_proj": (config.kv_width, config.hidden),
        "o_proj": (config.hidden, config.q_width),
    }
    for name in ATTENTION:
        module = f"model.layers.{layer}.self_attn.{name}"
        yield Linear(f"{module}.weight", module, shapes[name])


def expert_weight(layer: int, expert: int, part: str) -> str:
    """``part`` is w1 (gate), w3 (up) or w2 (down)."""
    return f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight"


def experts_module(layer: int) -> str:
    return f"model.layers.{layer}.mlp.experts"


def expert_linears(config: ModelConfig, layer: int) -> Iterator[Linear]:
    wide, tall = (config.intermediate, config.hidden), (config.hidden, config.intermediate)
    module = experts_module(layer)
    for expert in range(config.experts):
        for part, shape in (("w1", wide), ("w2", tall), ("w3", wide)):
            yield Linear(expert_weight(layer, expert, part), module, shape)


def layer_vectors(config: ModelConfig, layer: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(graph name, released name, shape) of the layer's tensors that are never quantised."""
    base = f"model.layers.{layer}."
    for name, width in (
        ("input_layernorm.weight", config.hidden),
        ("self_attn.q_norm.weight", config.q_width),
        ("self_attn.k_norm.weight", config.kv_width),
        ("post_attention_layernorm.weight", config.hidden),
    ):
        yield base + name, base + name, (width,)
    moe = base + "block_sparse_moe."
    yield base + "mlp.gate.weight", moe + "gate.weight", (config.experts, config.hidden)
    yield base + "mlp.e_score_correction_bias", moe + "e_score_correction_bias", (config.experts,)


def outer_tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors outside the layers; same name in graph and checkpoint."""
    yield EMBED, (config.vocab, config.hidden)
    yield NORM, (config.hidden,)
    yield HEAD, (config.vocab, config.hidden)


def scale_shape(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])
