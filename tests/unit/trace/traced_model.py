"""Random weights for a traced graph: run it in ONNX Runtime, and give the same to the official module."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from mm2c import dialect
from mm2c.config import ModelConfig, Rope, WeightFormats
from mm2c.dialect.blocks import dequantize_reference
from mm2c.trace.official import official_config
from mm2c.weights.rank_graph import RankGraph

NUMPY = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.BFLOAT16: ml_dtypes.bfloat16,
    ir.DataType.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
}


def config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "layers": 2,
        "hidden": 64,
        "heads": 6,
        "kv_heads": 2,
        "head_dim": 32,
        "intermediate": 32,
        "experts": 8,
        "top_k": 3,
        "vocab": 101,
        "eps": 1e-6,
        "context": 48,
        "rope": Rope(5e6, 16),
        "bos": 1,
        "eos": (2,),
    }
    return ModelConfig(**{**values, **changes})


def formats(
    config: ModelConfig, *, attention: bool = False, experts: bool = False, dense: str = "bf16"
) -> WeightFormats:
    """FP8 attention and/or experts in every layer; all else ``dense``."""
    fp8 = set()
    for layer in range(config.layers):
        base = f"model.layers.{layer}"
        if attention:
            fp8 |= {f"{base}.self_attn.{name}_proj" for name in "qkvo"}
        if experts:
            fp8.add(f"{base}.mlp.experts")
    from mm2c.checkpoint.recipes import recipes_for_config

    names = recipes_for_config(config, WeightFormats())
    return WeightFormats(
        frozenset(fp8), tuple((name, dense) for name in names if not name.startswith("rope."))
    )


def random_weights(graph: RankGraph, config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Values of every initializer, in its stored dtype; the rope tables from their formula."""
    generator = np.random.default_rng(seed)
    made = {}
    for name, value in graph.model.graph.initializers.items():
        shape = tuple(value.shape)
        if name.startswith("rope."):
            inverse = 1.0 / config.rope.theta ** (
                np.arange(0, config.rope.rotary_dim, 2) / config.rope.rotary_dim
            )
            angle = np.arange(shape[0], dtype=np.float32)[:, None] * inverse.astype(np.float32)
            array = np.cos(angle) if name.endswith("cos") else np.sin(angle)
        elif "norm" in name:
            array = 1 + 0.2 * generator.standard_normal(shape)
        elif name.endswith("_scale_inv"):
            array = generator.uniform(0.5, 1.5, shape) / 8
        elif name.endswith("bias"):
            array = 0.3 * generator.standard_normal(shape)
        else:
            array = generator.standard_normal(shape) * (1.0 if value.dtype.bitwidth == 8 else 0.1)
        made[name] = array.astype(np.float32).astype(NUMPY[value.dtype])
    return made


def session(graph: RankGraph, weights: dict[str, np.ndarray]) -> onnxruntime.InferenceSession:
    """The graph in ONNX Runtime, each dialect op by its function body."""
    model = ir.serde.deserialize_model(serialised(graph, weights))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    used = {node.op_type for node in model.graph if node.domain == dialect.DOMAIN}
    for name in used:
        body = ir.serde.deserialize_function(dialect.ops[name].body())
        model.functions[body.identifier()] = body
    text = ir.serde.serialize_model(model).SerializeToString()
    return onnxruntime.InferenceSession(text, options, providers=["CPUExecutionProvider"])


def serialised(graph: RankGraph, weights: dict[str, np.ndarray]) -> Any:
    for name, value in graph.model.graph.initializers.items():
        value.const_value = ir.Tensor(weights[name], dtype=value.dtype, name=name)
    try:
        return ir.serde.serialize_model(graph.model)
    finally:
        for value in graph.model.graph.initializers.values():
            value.const_value = None


def official(config: ModelConfig, weights: dict[str, np.ndarray]) -> Any:
    """The unmodified module in f32, sdpa, with the dequantised weights."""
    from transformers import MiniMaxM2ForCausalLM

    settings = official_config(config)
    settings._attn_implementation = "sdpa"
    settings._experts_implementation = "eager"
    model = MiniMaxM2ForCausalLM(settings).float().eval()
    state = {}
    for name, array in weights.items():
        if name.endswith("_scale_inv") or name.startswith("rope."):
            continue
        tensor = torch.from_numpy(array.astype(np.float32))
        scale = weights.get(f"{name}_scale_inv")
        if scale is not None:
            parts = 2 if name.endswith("gate_up_proj") else 1
            tensor = dequantize_reference(tensor, torch.from_numpy(scale), 128, 128, parts)
        state[name] = tensor
    model.load_state_dict(state, strict=True)
    return model
