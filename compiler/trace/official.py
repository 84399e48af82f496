"""The official transformers module on the meta device, its parts rebound to the dialect's ops.

Only ``forward`` of single instances is replaced, at module boundaries; the classes, the decoder layers and
the parameter names stay the official ones.

Imports torch and transformers: import this module only to trace.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import MiniMaxM2Config, MiniMaxM2ForCausalLM
from transformers.models.minimax_m2 import modeling_minimax_m2 as official

from mm2c.config import BLOCK, ModelConfig, WeightFormats

_DTYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
}


def official_config(config: ModelConfig) -> Any:
    """The transformers configuration of the same model."""
    # scaling is left out: it is compiled into the rope tables, the module's own rotary embedding never runs
    rope = {
        "rope_type": "default",
        "rope_theta": config.rope.theta,
        "partial_rotary_factor": config.rope.rotary_dim / config.head_dim,
    }
    return MiniMaxM2Config(
        vocab_size=config.vocab,
        hidden_size=config.hidden,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        num_local_experts=config.experts,
        num_experts_per_tok=config.top_k,
        rms_norm_eps=config.eps,
        max_position_embeddings=config.context,
        rope_parameters=rope,
        bos_token_id=config.bos,
        eos_token_id=list(config.eos) or None,
    )


def build_on_meta(config: ModelConfig, formats: WeightFormats) -> torch.nn.Module:
    """``MiniMaxM2ForCausalLM`` without storage, ready to be exported.

    Parameters have the dtypes that the checkpoint stores; every use casts them to the activations' dtype. FP8
    modules also have their block scales as parameters.
    """
    with torch.device("meta"):
        model = MiniMaxM2ForCausalLM(official_config(config)).eval()
    for name, module in model.named_modules():
        if isinstance(module, official.MiniMaxM2Experts):
            fp8 = formats.of(name) == "fp8"
            module.forward = MethodType(_fp8_experts if fp8 else _dense_experts, module)
            if fp8:
                _store_fp8(module, "gate_up_proj", parts=2)
                _store_fp8(module, "down_proj")
        elif isinstance(module, official.MiniMaxM2Attention):
            module.dialect = _attention_attributes(config)
            module.forward = MethodType(_attention, module)
        elif isinstance(module, official.MiniMaxM2TopKRouter):
            module.forward = MethodType(_router, module)
        elif isinstance(module, official.MiniMaxM2RMSNorm):
            module.forward = MethodType(_rms_norm, module)
        elif isinstance(module, torch.nn.Linear):
            fp8 = formats.of(name) == "fp8"
            module.forward = MethodType(_fp8_linear if fp8 else _linear, module)
            if fp8:
                _store_fp8(module, "weight")
    _store_dense(model, formats)
    return model


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a recipe's dtype name."""
    return _DTYPES[name]


def _store_fp8(module: torch.nn.Module, name: str, parts: int = 1) -> None:
    """Make ``module.name`` e4m3 and give it scales: an f32 a block of its last two axes, its rows being
    ``parts`` weights stacked, each divided into blocks of its own.
    """
    *stack, n, k = getattr(module, name).shape
    grid = (parts * -(-(n // parts) // BLOCK), -(-k // BLOCK))
    weight = torch.empty(*stack, n, k, dtype=torch.float8_e4m3fn, device="meta")
    scale = torch.empty(*stack, *grid, dtype=torch.float32, device="meta")
    setattr(module, name, torch.nn.Parameter(weight, requires_grad=False))
    setattr(module, f"{name}_scale_inv", torch.nn.Parameter(scale, requires_grad=False))


def _store_dense(model: torch.nn.Module, formats: WeightFormats) -> None:
    e4m3 = torch.float8_e4m3fn
    for prefix, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dtype != e4m3 and not name.endswith("_scale_inv"):
                dtype = torch_dtype(formats.dtype(f"{prefix}.{name}"))
                stored = torch.empty(parameter.shape, dtype=dtype, device="meta")
                setattr(module, name, torch.nn.Parameter(stored, requires_grad=False))
        if "e_score_correction_bias" in module._buffers:
            dtype = torch_dtype(formats.dtype(f"{prefix}.e_score_correction_bias"))
            bias = module._buffers["e_score_correction_bias"]
            assert bias is not None
            module._buffers["e_score_correction_bias"] = torch.empty(bias.shape, dtype=dtype, device="meta")


def _attention_attributes(config: ModelConfig) -> tuple[object, ...]:
    """The attributes of M2Attention in the order of its torch op."""
    return (
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.rope.rotary_dim,
        config.eps,
        float(config.head_dim**-0.5),
        config.q_width,
        config.kv_width,
    )


def _linear(self: Any, x: Tensor) -> Any:
    return torch.ops.mm2c.linear(x, self.weight.to(x.dtype))


def _fp8_linear(self: Any, x: Tensor) -> Any:
    return torch.ops.mm2c.fp8_linear(x, self.weight, self.weight_scale_inv, BLOCK, BLOCK)


def _rms_norm(self: Any, x: Tensor) -> Any:
    return torch.ops.mm2c.rms_norm(x, self.weight.to(x.dtype), self.variance_epsilon)


def _router(self: Any, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.ops.mm2c.linear(x, self.weight.to(x.dtype)).float()
    weights, ids = torch.ops.mm2c.moe_routing(logits, bias.float(), self.top_k)
    return logits, weights, ids


def _fp8_experts(self: Any, x: Tensor, ids: Tensor, weights: Tensor) -> Any:
    stored = (self.gate_up_proj, self.gate_up_proj_scale_inv, self.down_proj, self.down_proj_scale_inv)
    return torch.ops.mm2c.moe_experts_fp8(x, weights, ids, *stored, 0, BLOCK, BLOCK)


def _dense_experts(self: Any, x: Tensor, ids: Tensor, weights: Tensor) -> Any:
    return torch.ops.mm2c.moe_experts_bf16(x, weights, ids, self.gate_up_proj, self.down_proj, 0)


def _attention(
    self: Any, hidden_states: Tensor, position_embeddings: Any, past_key_values: Any, **_: Any
) -> tuple[Tensor, None]:
    """``position_embeddings`` is (cos, sin) tables; ``past_key_values`` the step's cache.StepCache."""
    ops, cache, layer = torch.ops.mm2c, past_key_values, self.layer_idx
    q, k, v = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
    out, cache.k_out[layer], cache.v_out[layer] = ops.attention(
        q,
        k,
        v,
        ops.qk_sum_squares(q, k),
        self.q_norm.weight.to(q.dtype),
        self.k_norm.weight.to(q.dtype),
        *position_embeddings,
        cache.past_len,
        cache.new_len,
        cache.k[layer],
        cache.v[layer],
        *self.dialect,
    )
    return self.o_proj(out), None
