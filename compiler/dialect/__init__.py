"""The compiler's own ONNX operators (domain ``mm2c``), one module each, and their registry.

``mm2c.dialect.ops`` maps an op's name to its OpSpec. Importing this package registers the schemas and does
not import torch; ``register_torch()`` does.
"""

from __future__ import annotations

from mm2c.dialect import (
    add_rms_norm,
    attention,
    dense_linear,
    dist_collective,
    fp8_linear,
    moe_bf16,
    moe_experts_bf16,
    moe_experts_fp8,
    moe_fp8,
    moe_routing,
    paged_attention,
    qk_sum_squares,
    router_linear,
)
from mm2c.dialect.schema import DOMAIN, OPSET, VERSION
from mm2c.dialect.spec import OpSpec, TorchOp

ops: dict[str, OpSpec] = {
    module.SPEC.name: module.SPEC
    for module in (
        fp8_linear,
        qk_sum_squares,
        attention,
        paged_attention,
        moe_routing,
        moe_experts_fp8,
        moe_experts_bf16,
        moe_fp8,
        moe_bf16,
        add_rms_norm,
        router_linear,
        dense_linear,
        dist_collective,
    )
}


def register_torch() -> dict[str, TorchOp]:
    """Every op as a torch custom op, by ONNX name. Imports torch; safe to call again."""
    return {name: spec.register_torch() for name, spec in ops.items()}


__all__ = ["DOMAIN", "OPSET", "VERSION", "OpSpec", "TorchOp", "ops", "register_torch"]
