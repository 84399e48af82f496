"""The dialect's references as a program's ops: attributes as programs state them, caches in place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mm2c.dialect import ops
from mm2c.verify.reference_ops import ReferenceOps


@dataclass
class Node:
    op: str
    attributes: dict[str, Any] = field(default_factory=dict)


WIDTHS = {"heads": 2, "kv_heads": 1, "head_dim": 8, "rotary_dim": 4, "eps": 1e-6, "scale": 0.3}
TOTALS = {"q_total": 16, "k_total": 8}


def attention_inputs(kind: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    wide = torch.randn(1, 2, 32)
    q, k, v = wide.split([16, 8, 8], -1)  # views, as a program's Split gives
    lengths = [torch.tensor([n], dtype=torch.int32) for n in (1, 2)]
    tables = [torch.rand(6, 2), torch.rand(6, 2)]
    caches = [torch.zeros(2, 3, 1, 8, dtype=kind) for _ in "kv"]
    sums = torch.rand(1, 2, 2) * 9
    table = torch.tensor([[1, 0]], dtype=torch.int32)
    return [q, k, v, sums, torch.ones(16), torch.ones(8), *tables, *lengths, table, *caches]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_caches_are_written_in_place(kind: torch.dtype) -> None:
    inputs = attention_inputs(kind)
    strides = {"q_stride": 32, "k_stride": 32, "v_stride": 32}
    node = Node("M2PagedAttention", {**WIDTHS, **TOTALS, **strides})
    expected = ops["M2PagedAttention"].register_torch().op(*inputs, **WIDTHS, **TOTALS)
    out, k_cache, v_cache = ReferenceOps().run(node, inputs)
    assert k_cache is inputs[11]
    assert v_cache is inputs[12]
    torch.testing.assert_close(out, expected[0])
    for found, wanted in zip((k_cache, v_cache), expected[1:], strict=True):
        assert torch.equal(found.float(), wanted.float())
        assert found.float().abs().sum() > 0


@pytest.mark.parametrize(("name", "kind"), [("f32", torch.float32), ("bf16", torch.bfloat16)])
def test_dtypes_may_be_names(name: str, kind: torch.dtype) -> None:
    x, w = torch.randn(3, 8).bfloat16(), torch.randn(4, 8).bfloat16()
    (y,) = ReferenceOps().run(Node("M2DenseLinear", {"out_dtype": name}), [x, w])
    assert y.dtype == kind


def test_two_outputs_come_in_order() -> None:
    x, residual = torch.randn(3, 8), torch.randn(3, 8)
    _, total = ReferenceOps().run(Node("M2AddRmsNorm", {"eps": 1e-6}), [x, residual, torch.ones(8)])
    assert torch.equal(total, x + residual)


@pytest.mark.parametrize("attributes", [{}, {"block_n": 128}, {"block_n": 128, "block_k": 128, "more": 1}])
def test_other_attributes_are_refused(attributes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="M2Fp8Linear takes 3 inputs"):
        ReferenceOps().run(Node("M2Fp8Linear", attributes), [torch.zeros(1)] * 3)


def test_an_op_that_is_none_of_the_dialect() -> None:
    with pytest.raises(KeyError):
        ReferenceOps().run(Node("M2Sample"), [])
