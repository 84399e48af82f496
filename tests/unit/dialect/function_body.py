"""Running one dialect op in ONNX Runtime through its function body, and beside it the torch reference."""

from __future__ import annotations

from typing import Any

import onnxruntime
import torch
from onnx import helper

from mm2c import dialect

ONNX_TYPE = {
    torch.float32: 1,
    torch.int32: 6,
    torch.float16: 10,
    torch.bfloat16: 16,
    torch.float8_e4m3fn: 17,
}


def run_body(name: str, inputs: list[torch.Tensor], **attributes: Any) -> list[torch.Tensor]:
    """The outputs of op ``name``, computed by ONNX Runtime from its body."""
    spec = dialect.ops[name]
    fed, held, feeds = [], [], {}
    for parameter, tensor in zip(spec.schema.inputs, inputs, strict=True):
        kind = ONNX_TYPE[tensor.dtype]
        if tensor.element_size() == 1 or tensor.dtype == torch.bfloat16:  # types that numpy cannot feed
            raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
            held.append(helper.make_tensor(parameter.name, kind, tensor.shape, raw, raw=True))
        else:
            free = [f"{parameter.name}_{axis}" for axis in range(tensor.dim())]
            fed.append(helper.make_tensor_value_info(parameter.name, kind, free))
            feeds[parameter.name] = tensor.numpy()
    results = [o.name for o in spec.schema.outputs]
    node = helper.make_node(
        name, [p.name for p in spec.schema.inputs], results, domain=dialect.DOMAIN, **attributes
    )
    outputs = [helper.make_tensor_value_info(r, 6 if r == "ids" else 1, None) for r in results]
    model = helper.make_model(
        helper.make_graph([node], "one_op", fed, outputs, initializer=held),
        opset_imports=[
            helper.make_opsetid("", dialect.OPSET),
            helper.make_opsetid(dialect.DOMAIN, dialect.VERSION),
        ],
        functions=[spec.body()],
        ir_version=11,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [torch.from_numpy(array) for array in session.run(None, feeds)]


def run_reference(name: str, inputs: list[torch.Tensor], **attributes: Any) -> list[torch.Tensor]:
    """The outputs of the op's torch reference."""
    result = dialect.ops[name].register_torch().op(*inputs, **attributes)
    return list(result) if isinstance(result, (tuple, list)) else [result]


def assert_agree(name: str, inputs: list[torch.Tensor], **attributes: Any) -> list[torch.Tensor]:
    """Body and reference agree to f32 rounding, integers exactly; the fake op gives the same shapes and
    dtypes.

    Returns the body's outputs.
    """
    got, want = run_body(name, inputs, **attributes), run_reference(name, inputs, **attributes)
    meta = [tensor.to("meta") for tensor in inputs]
    declared = run_reference(name, meta, **attributes)
    for body, reference, fake in zip(got, want, declared, strict=True):
        assert fake.device.type == "meta"
        assert body.shape == reference.shape == fake.shape
        assert body.dtype == reference.dtype == fake.dtype
        if reference.is_floating_point():
            scale = reference.abs().max().item() if reference.numel() else 0.0
            torch.testing.assert_close(body, reference, rtol=0, atol=2e-6 * max(scale, 1e-3))
        else:
            torch.testing.assert_close(body, reference, rtol=0, atol=0)
    return got
