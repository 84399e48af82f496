"""Every key of config.json: compiled, fixed to the one value that is compiled, or irrelevant, each with its
reason.

A key in none of the tables is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# The sizes and the field of ModelConfig that each becomes.
SIZES = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate",
    "num_local_experts": "experts",
    "num_experts_per_tok": "top_k",
    "vocab_size": "vocab",
    "max_position_embeddings": "context",
}
# Other names of a size, as transformers' attribute_map and other tools write them.
ALIASES = {"num_experts": "num_local_experts"}
ROPE = ("rope_theta", "rotary_dim", "partial_rotary_factor", "rope_parameters", "rope_scaling")
OTHER_COMPILED = (
    "model_type",
    "rms_norm_eps",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "quantization_config",
    "attn_type_list",
    "layer_types",
    "original_max_position_embeddings",
)
MTP = ("num_mtp_modules", "use_mtp", "mtp_transformer_layers")

IRRELEVANT: dict[str, str] = {
    "architectures": "the class is always transformers' MiniMaxM2ForCausalLM",
    "auto_map": "no code of the checkpoint is run",
    "dtype": "the tensors say how they are stored",
    "torch_dtype": "the tensors say how they are stored",
    "transformers_version": "who wrote the file",
    "_name_or_path": "where the file came from",
    "name_or_path": "where the file came from",
    "_commit_hash": "where the file came from",
    "use_cache": "a server always caches",
    "initializer_range": "training",
    "attention_dropout": "training",
    "hidden_dropout": "training",
    "router_aux_loss_coef": "training",
    "router_jitter_noise": "training",
    "output_router_logits": "training",
    "output_attentions": "debugging output",
    "output_hidden_states": "debugging output",
    "return_dict": "Python call style",
    "_attn_implementation": "how transformers runs it",
    "_attn_implementation_autoset": "how transformers runs it",
    "_experts_implementation": "how transformers runs it",
    "use_kernels": "how transformers runs it",
    "chunk_size_feed_forward": "how transformers runs it",
    "is_encoder_decoder": "a decoder by its architecture",
    "problem_type": "classification heads",
    "id2label": "classification heads",
    "label2id": "classification heads",
    "num_labels": "classification heads",
    "pad_token_id": "padding is masked by length",
    "max_model_len": "a serving default; mm2c has --context",
    "mlp_intermediate_size": "width of dense layers, of which M2 has none",
    "shared_moe_mode": "how a shared expert is mixed in, of which M2 has none",
    "swa_rope_theta": "RoPE of sliding-window layers, of which M2 has none",
    "attn_window_size": "width of sliding-window layers, of which M2 has none",
    "max_window_layers": "number of sliding-window layers, of which M2 has none",
}


@dataclass(frozen=True)
class Fixed:
    """A key whose only compiled values are ``allowed``; ``why`` ends the sentence that refuses another."""

    allowed: tuple[Any, ...]
    why: str


_NO_WINDOW = "attention is compiled over the whole context"
_NO_BIAS = "the linears of M2 have no bias and none is compiled"
_NO_LORA = "adapters are not compiled"
_NORM_BETA = "residual scaling is not compiled"
FIXED: dict[str, Fixed] = {
    "hidden_act": Fixed(("silu", "swish"), "only the SwiGLU experts of M2 are compiled"),
    "scoring_func": Fixed(("sigmoid",), "only sigmoid routing is compiled"),
    "use_qk_norm": Fixed((True,), "attention is compiled with the norm of q and k"),
    "qk_norm_type": Fixed(("per_layer",), "only one norm over all heads of q, and of k, is compiled"),
    "use_routing_bias": Fixed((True, None), "routing is compiled with e_score_correction_bias"),
    "norm_topk_prob": Fixed((True, None), "the weights of the chosen experts are compiled renormalised"),
    "routed_scaling_factor": Fixed((1, 1.0, None), "expert weights are compiled unscaled"),
    "shared_intermediate_size": Fixed((0, None), "M2 has no shared expert and none is compiled"),
    "n_shared_experts": Fixed((0, None), "M2 has no shared expert and none is compiled"),
    "num_shared_experts": Fixed((0, None), "M2 has no shared expert and none is compiled"),
    "sliding_window": Fixed((None,), _NO_WINDOW),
    "use_sliding_window": Fixed((False, None), _NO_WINDOW),
    "attention_bias": Fixed((False, None), _NO_BIAS),
    "qkv_bias": Fixed((False, None), _NO_BIAS),
    "mlp_bias": Fixed((False, None), _NO_BIAS),
    "use_bias": Fixed((False, None), _NO_BIAS),
    "attn_logit_softcapping": Fixed((None,), "logits are compiled uncapped"),
    "final_logit_softcapping": Fixed((None,), "logits are compiled uncapped"),
    "attention_sink": Fixed((False, None), "attention sinks are not compiled"),
    "layernorm_full_attention_beta": Fixed((1, 1.0, None), _NORM_BETA),
    "layernorm_linear_attention_beta": Fixed((1, 1.0, None), _NORM_BETA),
    "layernorm_mlp_beta": Fixed((1, 1.0, None), _NORM_BETA),
    "is_decoder": Fixed((False, True, None), "M2 is a decoder"),
    "add_cross_attention": Fixed((False, None), "cross-attention is not compiled"),
    "pruned_heads": Fixed(({}, None), "heads are compiled as a whole"),
    "tie_encoder_decoder": Fixed((False, None), "M2 has no encoder"),
    "lora_config": Fixed((None,), _NO_LORA),
    "lora_rank": Fixed((None, 0), _NO_LORA),
    "lora_alpha": Fixed((None, 0), _NO_LORA),
    "q_lora_rank": Fixed((None,), "low-rank projections are not compiled"),
    "kv_lora_rank": Fixed((None,), "low-rank projections are not compiled"),
    "peft_type": Fixed((None,), _NO_LORA),
    "text_config": Fixed((None,), "multimodal checkpoints are not compiled"),
    "vision_config": Fixed((None,), "multimodal checkpoints are not compiled"),
}

KNOWN = frozenset((*SIZES, *ALIASES, *ROPE, *OTHER_COMPILED, *MTP, *IRRELEVANT, *FIXED))

# What else of quantization_config may stand there, and why it changes nothing.
QUANT_IRRELEVANT: dict[str, str] = {
    "dequantize": "how transformers loads it",
    "modules_to_save": "training",
}
QUANT_COMPILED = (
    "quant_method",
    "fmt",
    "activation_scheme",
    "weight_block_size",
    "modules_to_not_convert",
)
