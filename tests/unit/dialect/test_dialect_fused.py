"""Ops that lowerings make of others: bodies against references, and against the ops they stand for."""

from __future__ import annotations

import pytest
import torch
from function_body import assert_agree, run_body, run_reference
from onnx import TensorProto

from mm2c import dialect

SHAPES = [(1, 16), (2, 3, 40), (1, 1, 128), (5, 3072), (2, 2, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_add_and_norm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(shape[-1])
    x, residual, weight = torch.randn(shape), torch.randn(shape), 1 + 0.1 * torch.randn(shape[-1])
    y, total = assert_agree("M2AddRmsNorm", [x, residual, weight], eps=1e-6)
    torch.testing.assert_close(total, x + residual, rtol=0, atol=0)
    wide = (x + residual).double()
    exact = weight.double() * wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)


def test_the_norm_is_rounded_before_the_weight() -> None:
    x, weight = torch.randn(4, 64).bfloat16(), torch.randn(64).bfloat16()
    y, total = run_reference("M2AddRmsNorm", [x, torch.zeros_like(x), weight], eps=1e-6)
    unit = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(y, weight * unit.bfloat16())
    assert torch.equal(total, x)


@pytest.mark.parametrize(
    ("tokens", "hidden", "experts"), [(1, 16, 4), (9, 40, 33), (64, 128, 256), (3, 5, 1)]
)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_router_logits(tokens: int, hidden: int, experts: int, stored: torch.dtype) -> None:
    torch.manual_seed(tokens)
    x, w = torch.randn(tokens, hidden), torch.randn(experts, hidden).to(stored)
    logits = assert_agree("M2RouterLinear", [x, w])[0]
    torch.testing.assert_close(logits.double(), x.double() @ w.double().T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_router_logits_are_not_rounded_to_the_activations_type(kind: torch.dtype) -> None:
    x, w = torch.randn(7, 64).to(kind), torch.randn(8, 64)
    logits = run_reference("M2RouterLinear", [x, w])[0]
    torch.testing.assert_close(logits, x.float() @ w.T)


@pytest.mark.parametrize("lead", [(3,), (2, 5), (1, 1)])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_dense_linear(lead: tuple[int, ...], stored: torch.dtype) -> None:
    x, w = torch.randn(*lead, 24), torch.randn(10, 24).to(stored)
    y = assert_agree("M2DenseLinear", [x, w], out_dtype=TensorProto.FLOAT)[0]
    torch.testing.assert_close(y, x @ w.float().T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("number", "kind"), [(1, torch.float32), (10, torch.float16), (16, torch.bfloat16)])
def test_a_dense_linear_s_result_is_rounded_once(number: int, kind: torch.dtype) -> None:
    x, w = torch.randn(4, 32).bfloat16(), torch.randn(6, 32).bfloat16()
    y = run_reference("M2DenseLinear", [x, w], out_dtype=number)[0]
    assert y.dtype == kind
    assert torch.equal(y, (x.float() @ w.float().T).to(kind))
    meta = run_reference("M2DenseLinear", [x.to("meta"), w.to("meta")], out_dtype=number)[0]
    assert meta.dtype == kind


# tokens, hidden, intermediate, local experts, top_k, first expert, all experts
EXPERTS = [
    (1, 16, 24, 4, 2, 0, 4),
    (5, 40, 24, 4, 3, 2, 8),
    (33, 128, 64, 8, 2, 0, 8),
    (2, 64, 128, 2, 1, 1, 3),
]


@pytest.mark.parametrize("shape", EXPERTS)
@pytest.mark.parametrize("block", [128, 64])
def test_fp8_moe_is_routing_and_experts(shape: tuple[int, ...], block: int) -> None:
    tokens, hidden, inner, count, top_k, first, experts = shape
    torch.manual_seed(tokens)
    n, k = -(-inner // block), -(-hidden // block)
    x, logits, bias = torch.randn(tokens, hidden), 2 * torch.randn(tokens, experts), torch.randn(experts)
    w13 = torch.randn(count, 2 * inner, hidden).to(torch.float8_e4m3fn)
    w2 = torch.randn(count, hidden, inner).to(torch.float8_e4m3fn)
    stored = [w13, torch.rand(count, 2 * n, k) / 8, w2, torch.rand(count, k, n) / 8]
    blocks = {"block_n": block, "block_k": block}
    y = assert_agree("M2MoeFp8", [x, logits, bias, *stored], top_k=top_k, first_expert=first, **blocks)[0]
    weights, ids = run_body("M2MoeRouting", [logits, bias], top_k=top_k)
    apart = run_body("M2MoeExpertsFp8", [x, weights, ids, *stored], first_expert=first, **blocks)[0]
    torch.testing.assert_close(y, apart, rtol=0, atol=0)


@pytest.mark.parametrize("shape", EXPERTS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_dense_moe_is_routing_and_experts(shape: tuple[int, ...], stored: torch.dtype) -> None:
    tokens, hidden, inner, count, top_k, first, experts = shape
    torch.manual_seed(tokens)
    x, logits, bias = torch.randn(tokens, hidden), 2 * torch.randn(tokens, experts), torch.randn(experts)
    w13 = (torch.randn(count, 2 * inner, hidden) / hidden**0.5).to(stored)
    w2 = (torch.randn(count, hidden, inner) / inner**0.5).to(stored)
    y = assert_agree("M2MoeBf16", [x, logits, bias, w13, w2], top_k=top_k, first_expert=first)[0]
    weights, ids = run_body("M2MoeRouting", [logits, bias], top_k=top_k)
    apart = run_body("M2MoeExpertsBf16", [x, weights, ids, w13, w2], first_expert=first)[0]
    torch.testing.assert_close(y, apart, rtol=0, atol=0)


def test_the_fused_ops_take_what_their_parts_take() -> None:
    for fused, parts in (("M2MoeFp8", "M2MoeExpertsFp8"), ("M2MoeBf16", "M2MoeExpertsBf16")):
        fused_inputs = [i.name for i in dialect.ops[fused].schema.inputs]
        assert fused_inputs[3:] == [i.name for i in dialect.ops[parts].schema.inputs][3:]
