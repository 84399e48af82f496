"""Registering the torch side of an op: the custom op, its shape rule and its ONNX translation."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

from onnx.defs import OpSchema

from mm2c.dialect.schema import DOMAIN, VERSION
from mm2c.dialect.spec import TorchOp


def register(
    schema: OpSchema, name: str, signature: str, reference: Callable[..., Any], fake: Callable[..., Any]
) -> TorchOp:
    """Register ``torch.ops.mm2c.name`` and return it with its translation to the node of ``schema``.

    ``signature`` is torch's schema text; its arguments are the ONNX inputs, then the ONNX attributes, in the
    schema's order. ``reference`` computes, ``fake`` gives shapes and dtypes only.
    """
    import torch

    custom = torch.library.custom_op(f"{DOMAIN}::{name}", reference, mutates_args=(), schema=signature)
    custom.register_fake(fake)
    overload = getattr(getattr(torch.ops, DOMAIN), name).default
    return TorchOp(overload, translation(schema, [a.name for a in overload._schema.arguments]))


def translation(schema: OpSchema, arguments: list[str]) -> Callable[..., Any]:
    """The function that the exporter traces in place of the torch op: one node of the dialect."""
    from onnxscript.values import Opset

    emit = getattr(Opset(DOMAIN, VERSION), schema.name)
    inputs = [i.name for i in schema.inputs]
    if arguments[: len(inputs)] != inputs or set(arguments[len(inputs) :]) != set(schema.attributes):
        raise ValueError(f"{schema.name}: torch arguments {arguments} do not match the ONNX schema")

    def translate(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(arguments, args, strict=False)), **kwargs}
        return emit(*(given.pop(name) for name in inputs), **given)

    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in arguments]
    translate.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    translate.__name__ = schema.name
    return translate
