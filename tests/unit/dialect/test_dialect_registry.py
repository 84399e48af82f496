"""The registry: schemas, bodies and torch ops fit each other, and torch stays out until it is asked for."""

from __future__ import annotations

import subprocess
import sys

import onnx
import pytest
import torch
from onnx import helper

from mm2c import dialect

NAMES = [
    "M2Fp8Linear",
    "M2QkSumSquares",
    "M2Attention",
    "M2PagedAttention",
    "M2MoeRouting",
    "M2MoeExpertsFp8",
    "M2MoeExpertsBf16",
    "M2MoeFp8",
    "M2MoeBf16",
    "M2AddRmsNorm",
    "M2RouterLinear",
    "M2DenseLinear",
    "DistCollective",
]
WITHOUT_PLUGIN = {"M2Attention", "M2DenseLinear", "DistCollective"}


def test_every_op_is_there() -> None:
    assert sorted(dialect.ops) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_has_the_name_of_its_op(name: str) -> None:
    assert dialect.ops[name].plugin == (None if name in WITHOUT_PLUGIN else name)


@pytest.mark.parametrize("name", NAMES)
def test_body_has_the_schema_s_signature(name: str) -> None:
    spec = dialect.ops[name]
    body = spec.body()
    assert (body.domain, body.name) == (dialect.DOMAIN, name)
    assert list(body.input) == [i.name for i in spec.schema.inputs]
    assert list(body.output) == [o.name for o in spec.schema.outputs]
    assert sorted(body.attribute) == sorted(spec.schema.attributes)
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    assert all(i.option == single for i in spec.schema.inputs)
    assert all(node.domain == "" for node in body.node)
    assert spec.body().SerializeToString() == body.SerializeToString()
    assert {o.domain: o.version for o in body.opset_import} == {"": dialect.OPSET}


@pytest.mark.parametrize("name", NAMES)
def test_schema_is_registered_once(name: str) -> None:
    schema = onnx.defs.get_schema(name, dialect.VERSION, dialect.DOMAIN)
    assert schema.domain == dialect.DOMAIN
    assert schema.since_version == 1


def test_schemas_can_be_defined_twice() -> None:
    code = (
        "import importlib, mm2c.dialect, mm2c.dialect.attention as a\n"
        "importlib.reload(a)\n"
        "import sys; print('torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_a_missing_attribute_is_refused() -> None:
    node = helper.make_node("M2MoeRouting", ["logits", "bias"], ["weights", "ids"], domain=dialect.DOMAIN)
    context = onnx.checker.C.CheckerContext()
    context.ir_version = 11
    context.opset_imports = {"": dialect.OPSET, dialect.DOMAIN: dialect.VERSION}
    with pytest.raises(onnx.checker.ValidationError, match="top_k"):
        onnx.checker.check_node(node, context)


def f8(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).to(torch.float8_e4m3fn)


def i32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


ATTENTION = [
    torch.randn(1, 2, 16),
    torch.randn(1, 2, 8),
    torch.randn(1, 2, 8),
    torch.rand(1, 2, 2) * 9,
    torch.ones(16),
    torch.ones(8),
    torch.rand(6, 2),
    torch.rand(6, 2),
    i32(1),
    i32(2),
]
WIDTHS = (2, 1, 8, 4, 1e-6, 0.3, 16, 8)
SAMPLES: dict[str, tuple[object, ...]] = {
    "M2Fp8Linear": (torch.randn(3, 10), f8(6, 10), torch.rand(2, 3), 4, 4),
    "M2QkSumSquares": (torch.randn(2, 3, 8), torch.randn(2, 3, 4)),
    "M2Attention": (*ATTENTION, torch.randn(1, 1, 6, 8), torch.randn(1, 1, 6, 8), *WIDTHS),
    "M2PagedAttention": (
        *ATTENTION,
        i32(1, 0)[None],
        torch.randn(2, 3, 1, 8),
        torch.randn(2, 3, 1, 8),
        *WIDTHS,
    ),
    "M2MoeRouting": (torch.randn(3, 5), torch.randn(5), 2),
    "M2MoeExpertsFp8": (
        torch.randn(3, 8),
        torch.rand(3, 2),
        i32(0, 1, 1, 2, 2, 0).view(3, 2),
        f8(3, 8, 8),
        torch.rand(3, 2, 1),
        f8(3, 8, 4),
        torch.rand(3, 1, 1),
        0,
        128,
        128,
    ),
    "M2MoeExpertsBf16": (
        torch.randn(3, 8),
        torch.rand(3, 2),
        i32(0, 1, 1, 2, 2, 0).view(3, 2),
        torch.randn(3, 8, 8),
        torch.randn(3, 8, 4),
        0,
    ),
    "M2MoeFp8": (
        torch.randn(3, 8),
        torch.randn(3, 3),
        torch.randn(3),
        f8(3, 8, 8),
        torch.rand(3, 2, 1),
        f8(3, 8, 4),
        torch.rand(3, 1, 1),
        2,
        0,
        128,
        128,
    ),
    "M2MoeBf16": (
        torch.randn(3, 8),
        torch.randn(3, 3),
        torch.randn(3),
        torch.randn(3, 8, 8),
        torch.randn(3, 8, 4),
        2,
        0,
    ),
    "M2AddRmsNorm": (torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.ones(8), 1e-6),
    "M2RouterLinear": (torch.randn(3, 8).bfloat16(), torch.randn(5, 8)),
    "M2DenseLinear": (torch.randn(2, 3, 8).bfloat16(), torch.randn(6, 8).bfloat16(), 1),
    "DistCollective": (torch.randn(2, 3), "all_reduce", "sum", -1, 1, [0], 1, 0),
}


@pytest.mark.parametrize("name", NAMES)
def test_torch_op_is_well_made(name: str) -> None:
    op = dialect.ops[name].register_torch().op
    checks = ["test_faketensor"]
    if "Fp8" not in name:  # test_schema compares all arguments, and torch cannot compare e4m3
        checks.append("test_schema")
    torch.library.opcheck(op, SAMPLES[name], test_utils=checks)
