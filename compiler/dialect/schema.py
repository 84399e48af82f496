"""Writing and registering the ONNX schemas of the ``mm2c`` domain. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx.defs import OpSchema

DOMAIN = "mm2c"
VERSION = 1
OPSET = 23  # of standard ONNX, for traced graphs and for the function bodies alike

ACTIVATIONS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
E4M3 = "tensor(float8e4m3fn)"
F32 = "tensor(float)"
I32 = "tensor(int32)"
TYPE_VARIABLES = {
    "T": (ACTIVATIONS, "activations"),
    "C": ([*ACTIVATIONS, E4M3], "KV cache"),
    "W": (ACTIVATIONS, "stored dense weights"),
    "O": (ACTIVATIONS, "results whose type an attribute chooses"),
}


def define(
    name: str,
    doc: str,
    inputs: Sequence[tuple[str, str]],
    outputs: Sequence[tuple[str, str]],
    attributes: Sequence[tuple[str, OpSchema.AttrType]] = (),
) -> OpSchema:
    """The schema of ``mm2c.name``: ``inputs`` and ``outputs`` are (name, type) pairs, a type being a tensor
    type or one of TYPE_VARIABLES. No input is optional and every attribute is required.

    Registered with onnx unless it is there already, so that importing twice is harmless.
    """
    used = {kind for _, kind in [*inputs, *outputs]}
    schema = OpSchema(
        name,
        DOMAIN,
        VERSION,
        doc=doc,
        inputs=[OpSchema.FormalParameter(n, kind) for n, kind in inputs],
        outputs=[OpSchema.FormalParameter(n, kind) for n, kind in outputs],
        type_constraints=[(v, types, text) for v, (types, text) in TYPE_VARIABLES.items() if v in used],
        attributes=[OpSchema.Attribute(n, kind, "", required=True) for n, kind in attributes],
    )
    if not onnx.defs.has(name, domain=DOMAIN):
        onnx.defs.register_schema(schema)
    return schema
