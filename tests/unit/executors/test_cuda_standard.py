"""The standard ops against ONNX's own reference evaluator, on tensors and on host values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from mm2c_runtime.executors.cuda import shapes, standard
from mm2c_runtime.executors.cuda.standard import number

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)
Y = RNG.standard_normal((2, 3, 4)).astype(np.float32)
I = np.array([[0, 2, 1], [1, 1, 0]], np.int64)  # noqa: E741
B = RNG.random((2, 3, 4)) > 0.5
_ONNX = {
    "f32": TensorProto.FLOAT,
    "i64": TensorProto.INT64,
    "i32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}


def i64(*values: int) -> Any:
    return np.array(values, np.int64)


def reference(op: str, attributes: dict[str, Any], inputs: list[Any], outputs: int = 1) -> list[Any]:
    names = [f"i{n}" for n in range(len(inputs))]
    made = [f"o{n}" for n in range(outputs)]
    given = {k: _ONNX[v] if k == "to" else v for k, v in attributes.items()}
    node = helper.make_node(op, names, made, **given)
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.asarray(x).dtype), None)
        for n, x in zip(names, inputs, strict=True)
    ]
    graph = helper.make_graph([node], "g", values, [onnx.ValueInfoProto(name=n) for n in made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    return list(ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True))))


CASES: list[tuple[str, dict[str, Any], list[Any], int]] = [
    # op, attributes, inputs, how many of them are tensors on the device
    ("Add", {}, [X, Y], 2),
    ("Sub", {}, [X, np.float32(2)], 1),
    ("Mul", {}, [np.full((1,), 3, np.float32), X], 0),
    ("And", {}, [B, B], 2),
    ("Less", {}, [I, np.array(1, np.int64)], 1),
    ("GreaterOrEqual", {}, [I, I[:, :1]], 2),
    ("Where", {}, [B, X, Y], 3),
    ("Where", {}, [B, X, np.float32(0)], 2),
    ("Cast", {"to": "i64"}, [B], 1),
    ("Cast", {"to": "f32"}, [I], 1),
    ("CastLike", {}, [I, X], 2),
    ("Concat", {"axis": 1}, [X, Y], 2),
    ("Gather", {}, [X[0], I], 2),
    ("Gather", {"axis": 1}, [X, I], 2),
    ("Gather", {"axis": 2}, [X, np.array(-1, np.int64)], 1),
    ("Gather", {"axis": 1}, [X, i64(2)], 1),
    ("GatherND", {"batch_dims": 1}, [X, np.array([[2], [0]], np.int64)], 2),
    ("GatherND", {}, [X, np.array([[1, 2], [0, 1]], np.int64)], 2),
    ("GatherND", {"batch_dims": 1}, [X, np.array([[2, 1], [0, 3]], np.int64)], 2),
    ("GatherND", {"batch_dims": 2}, [X, np.array([[[2], [1], [0]], [[3], [3], [0]]], np.int64)], 2),
    ("Identity", {}, [X], 1),
    ("MatMul", {}, [X, Y.transpose(0, 2, 1)], 2),
    ("Pad", {}, [X, i64(0, 1, 0, 2, 0, 3)], 1),
    ("Pad", {}, [X, i64(0, 2), np.float32(-np.inf), i64(1)], 1),
    ("Reshape", {}, [X, i64(-1, 4)], 1),
    ("Reshape", {}, [X, i64(0, -1)], 1),
    ("Reshape", {"allowzero": 1}, [X[:0], i64(0, 6, 2)], 1),
    ("RMSNormalization", {"axis": -1, "epsilon": 1e-5}, [X, Y[0, 0]], 2),
    ("Shape", {}, [X], 1),
    ("Shape", {"start": 1, "end": 2}, [X], 1),
    ("Shape", {"start": -1}, [X], 1),
    ("Slice", {}, [X, i64(1), i64(3), i64(2)], 1),
    ("Slice", {}, [X, i64(0, -3), i64(9, -1), i64(0, 2), i64(1, 2)], 1),
    ("Slice", {}, [X, i64(1, 1), i64(2, 3)], 1),
    ("Squeeze", {}, [X[:, :1], i64(1)], 1),
    ("Squeeze", {}, [X[:1, :, :1]], 1),
    ("Transpose", {"perm": [2, 0, 1]}, [X], 1),
    ("Transpose", {}, [X], 1),
    ("Unsqueeze", {}, [X, i64(0, -1)], 1),
]


@pytest.mark.parametrize(
    ("op", "attributes", "inputs", "tensors"), CASES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_ops_are_onnxs(op: str, attributes: dict[str, Any], inputs: list[Any], tensors: int) -> None:
    expected = reference(op, attributes, inputs)[0]
    given = [torch.from_numpy(np.array(x)) if n < tensors else np.asarray(x) for n, x in enumerate(inputs)]
    if op == "Mul":  # the host value first
        given = [np.asarray(inputs[0]), torch.from_numpy(inputs[1])]
    found = standard.OPS[op](attributes, *given)
    found = found.numpy() if isinstance(found, torch.Tensor) else found
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6)


HOSTED = [case for case in CASES if case[0] not in ("MatMul", "Pad", "RMSNormalization", "GatherND")]


@pytest.mark.parametrize(
    ("op", "attributes", "inputs", "tensors"), HOSTED, ids=lambda v: v if isinstance(v, str) else ""
)
def test_host_ops_are_onnxs(op: str, attributes: dict[str, Any], inputs: list[Any], tensors: int) -> None:
    expected = reference(op, attributes, inputs)[0]
    found = shapes.OPS[op](attributes, *map(np.asarray, inputs))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    ("attributes", "sizes"),
    [({"axis": -1}, [1, 3]), ({"axis": -1, "num_outputs": 2}, None), ({"axis": 0}, [1, 1])],
)
def test_split_gives_views(attributes: dict[str, Any], sizes: list[int] | None) -> None:
    inputs = [X] if sizes is None else [X, i64(*sizes)]
    expected = reference("Split", attributes, inputs, 2)
    x = torch.from_numpy(X.copy())
    found = standard.OPS["Split"](attributes, x, *inputs[1:])
    for part, host, wanted in zip(found, shapes.OPS["Split"](attributes, *inputs), expected, strict=True):
        assert part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        np.testing.assert_array_equal(part.numpy(), wanted)
        np.testing.assert_array_equal(host, wanted)


def test_every_standard_op_of_the_lowering_is_here() -> None:
    from mm2c.lower.cuda import STANDARD_OPS

    assert standard.OPS.keys() == STANDARD_OPS
    assert standard.OPS.keys() - shapes.OPS.keys() == {"GatherND", "MatMul", "Pad", "RMSNormalization"}


def test_rms_norm_rounds_before_it_scales() -> None:
    x = torch.randn(5, 64).to(torch.bfloat16)
    weight = torch.randn(64).to(torch.bfloat16)
    found = standard.OPS["RMSNormalization"]({"epsilon": 1e-6}, x, weight)
    wide = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(found, weight * wide.to(torch.bfloat16))


def test_a_host_value_beside_a_tensor_is_one_number() -> None:
    x = torch.zeros(2, 2)
    assert number(np.array([[3.0]], np.float32), x) == 3.0
    for wrong in (np.zeros(2, np.float32), np.zeros((1, 1, 1), np.float32)):
        with pytest.raises(ValueError, match="a host value of shape"):
            number(wrong, x)
    for op, inputs in (
        ("Where", [np.array(True), x, x]),
        ("Gather", [np.zeros(3), torch.tensor(1)]),
        ("Gather", [x, i64(0, 1)]),
    ):
        with pytest.raises(ValueError, match="host"):
            standard.OPS[op]({}, *inputs)
    with pytest.raises(ValueError, match="only the last axis"):
        standard.OPS["RMSNormalization"]({"axis": 0}, x, x[0])
