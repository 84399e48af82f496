"""M2PagedAttention over a cache of e4m3."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from test_dialect_attention import Case, attributes, projections

from mm2c import dialect

CASE = Case("fp8", 4, 2, 16, 8, 5, 16, (3, 0, 9), (5, 2, 1))
PAGE = 4


def inputs(scale: float = 1.0) -> list[torch.Tensor]:
    """All inputs; caches are small integers, which e4m3 holds exactly."""
    pages = CASE.capacity // PAGE * len(CASE.past)
    table = torch.randperm(pages).view(len(CASE.past), -1).to(torch.int32)
    shape = (pages, PAGE, CASE.kv_heads, CASE.head_dim)
    caches = [torch.randint(-4, 5, shape).float().to(torch.float8_e4m3fn) for _ in "kv"]
    given = projections(CASE)
    given[2] = given[2] * scale
    return [*given, table, *caches]


def body(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The body on ONNX Runtime, caches widened to f32 around the op: numpy can neither feed nor fetch e4m3."""
    spec = dialect.ops["M2PagedAttention"]
    names = [i.name for i in spec.schema.inputs]
    fed, feeds, nodes = [], {}, []
    for name, tensor in zip(names, tensors, strict=True):
        array = tensor.float().numpy() if tensor.dtype == torch.float8_e4m3fn else tensor.numpy()
        wide = f"{name}_wide" if tensor.dtype == torch.float8_e4m3fn else name
        fed.append(
            helper.make_tensor_value_info(wide, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        )
        feeds[wide] = array
        if wide != name:
            nodes.append(helper.make_node("Cast", [wide], [name], to=TensorProto.FLOAT8E4M3FN))
    outputs = ["out", "k_cache_out", "v_cache_out"]
    nodes.append(helper.make_node(spec.name, names, outputs, domain="mm2c", **attributes(CASE)))
    nodes += [helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.FLOAT) for name in outputs]
    graph = helper.make_graph(
        nodes, "fp8", fed, [helper.make_tensor_value_info(f"{n}_wide", 1, None) for n in outputs]
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid("mm2c", 1)],
        functions=[spec.body()],
        ir_version=11,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [torch.from_numpy(np.asarray(x)) for x in session.run(None, feeds)]


def reference(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    op = dialect.ops["M2PagedAttention"].register_torch().op
    return list(op(*tensors, *attributes(CASE).values()))


def test_body_and_reference_agree() -> None:
    torch.manual_seed(0)
    given = inputs()
    got, want = body(given), reference(given)
    assert [w.dtype for w in want[1:]] == [torch.float8_e4m3fn] * 2
    for row, new in enumerate(CASE.new):
        torch.testing.assert_close(got[0][row, :new], want[0][row, :new], rtol=0, atol=1e-5)
    for found, cache in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(found, cache.float(), rtol=0, atol=0)


def test_what_e4m3_cannot_hold_is_written_as_its_largest() -> None:
    torch.manual_seed(1)
    given = inputs(scale=1e4)
    got, want = body(given)[2], reference(given)[2].float()
    assert torch.isfinite(want).all()
    assert want.abs().max() == 448
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_nothing_but_the_new_tokens_is_written() -> None:
    torch.manual_seed(2)
    given = inputs()
    out = reference(given)
    changed = (out[2].float() != given[-1].float()).flatten(2).any(-1).sum().item()
    assert changed == sum(CASE.new)
