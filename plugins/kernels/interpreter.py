"""Triton's CPU interpreter, made to compute what a GPU computes.

Triton 3.9.0's interpreter keeps bfloat16 and float8 values as integers of their bits and calculates with those.
install() replaces the parts that go wrong. tests/kernels/test_interpreter.py shows that they are wrong, so that a
release which mends one is noticed:

- casts to bfloat16 and float8 round to nearest even; float8 saturates as the GPU's conversion does
- casts between integers and bfloat16/float8 go through the value, and float to integer saturates (NaN gives 0)
- dot products of bfloat16 and float8 multiply the values; float32 ones lose the bits that TF32 loses
- elementwise arithmetic and reductions of bfloat16/float8 compute in float32 and round once
- comparisons are int1, so that a scalar comparison can be part of a mask
- argmax and argmin of NaN follow the combine function and never raise
- reductions and scans with a combine function run over whole slices: tl.sort takes milliseconds, not minutes. A combine
  function must not branch on its values.

Set TRITON_INTERPRET=1 before triton is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter as upstream

VERSION = "3.9.0"  # what the replaced parts were written against

Array = npt.NDArray[Any]
_VALUES: dict[Any, Any] = {
    tl.bfloat16: ml_dtypes.bfloat16,
    tl.float8e4nv: ml_dtypes.float8_e4m3fn,
    tl.float8e5: ml_dtypes.float8_e5m2,
}
_BITS = {1: np.uint8, 2: np.uint16}
_LARGEST = {tl.float8e4nv: 448.0, tl.float8e5: 57344.0}
_TF32_MASK = np.uint32(0xFFFFE000)  # TF32 units read the upper 19 bits


def install() -> None:
    """Replace the wrong parts for this process; once is enough, more does no harm."""
    if triton.__version__ != VERSION:
        raise RuntimeError(
            f"the interpreter's corrections are for triton {VERSION}, not {triton.__version__}"
        )
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("set TRITON_INTERPRET=1 before triton is imported")
    builder = upstream.InterpreterBuilder
    if getattr(builder, "mm2c_corrected", False):
        return
    builder.mm2c_corrected = True
    _replace_casts(builder)
    _replace_arithmetic(builder)
    _replace_reductions()


def decode(bits: Array, kind: Any) -> Array:
    """float32 values of bfloat16/float8 bits; any other array as it is."""
    if kind not in _VALUES:
        return bits
    values: Array = bits.view(_VALUES[kind]).astype(np.float32)
    return values


def encode(values: Array, kind: Any) -> Array:
    """Bits of ``values`` rounded once, to nearest even, to bfloat16 or float8 (which saturates; NaN stays NaN)."""
    values = np.asarray(values)
    if values.dtype.itemsize > 4 or values.dtype.kind in "iub":
        values = _round_to_odd(values.astype(np.float64))
    values = values.astype(np.float32)
    if kind in _LARGEST:
        values = np.clip(values, -_LARGEST[kind], _LARGEST[kind])
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(_VALUES[kind])
    bits: Array = rounded.view(_BITS[rounded.dtype.itemsize])
    return bits


def _round_to_odd(values: Array) -> Array:
    """float64 -> float32 such that a further rounding to a narrower type is right."""
    with np.errstate(over="ignore", invalid="ignore"):
        near = values.astype(np.float32)
        near = np.where(np.abs(near) > np.abs(values), np.nextafter(near, np.float32(0)), near)
        inexact = (near.astype(np.float64) != values) & ~np.isnan(values)
    odd: Array = (near.view(np.uint32) | inexact.astype(np.uint32)).view(np.float32)
    return odd


def _truncate(values: Array, target: np.dtype[Any]) -> Array:
    """float -> integer towards zero, at the ends of the range for what is outside it."""
    limits = np.iinfo(target)
    with np.errstate(invalid="ignore"):
        whole = np.trunc(np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf))
        inside = np.clip(whole, float(limits.min), float(limits.max)).astype(target)
    # float64 has no 2**63 - 1: the clip leaves 2**63, which wraps around
    return np.where(whole >= float(limits.max), target.type(limits.max), inside)


def _replace_casts(builder: Any) -> None:
    handle = upstream.TensorHandle
    convert = builder.create_fp_to_fp

    def cast_impl(self: Any, source: Any, target_type: Any) -> Any:
        kind, target = source.dtype.scalar, target_type.scalar
        values = decode(source.data, kind)
        if target in _VALUES:
            return handle(encode(values, target), target)
        numpy_type = upstream._get_np_dtype(target)
        if values.dtype.kind == "f" and numpy_type.kind in "iu":
            return handle(_truncate(values, numpy_type), target)
        with np.errstate(over="ignore", invalid="ignore"):
            return handle(values.astype(numpy_type), target)

    def create_fp_to_fp(self: Any, source: Any, target_type: Any, rounding: Any) -> Any:
        ours = source.dtype.scalar in _VALUES or target_type.scalar in _VALUES
        if ours and rounding != ir.ROUNDING_MODE.RTZ:
            return cast_impl(self, source, target_type)
        return convert(self, source, target_type, rounding)

    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp


def _replace_arithmetic(builder: Any) -> None:
    handle = upstream.TensorHandle
    binary, unary = builder.binary_op, builder.unary_op

    def finish(values: Array, kind: Any) -> Any:
        return handle(values, tl.int1) if values.dtype == np.bool_ else handle(encode(values, kind), kind)

    def binary_op(self: Any, left: Any, right: Any, op: Callable[..., Array]) -> Any:
        kind = left.dtype.scalar
        if kind in _VALUES and right.dtype.scalar == kind:
            with np.errstate(all="ignore"):
                return finish(op(decode(left.data, kind), decode(right.data, kind)), kind)
        with np.errstate(all="ignore"):
            result = binary(self, left, right, op)
        if result.data.dtype == np.bool_:
            result.dtype = tl.int1
        return result

    def unary_op(self: Any, value: Any, op: Callable[..., Array]) -> Any:
        kind = value.dtype.scalar
        with np.errstate(all="ignore"):
            if kind in _VALUES:
                return finish(op(decode(value.data, kind)), kind)
            return unary(self, value, op)

    def in_float32(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Any, *operands: Any) -> Any:
            kind = operands[0].dtype.scalar
            if kind not in _VALUES:
                with np.errstate(all="ignore"):
                    return method(self, *operands)
            wide = [
                handle(decode(o.data, kind), tl.float32) if isinstance(o, handle) else o for o in operands
            ]
            return finish(method(self, *wide).data, kind)

        return run

    builder.binary_op = binary_op
    builder.unary_op = unary_op
    for name in ("create_rsqrt", "create_erf", "create_fma", "create_clampf"):
        setattr(builder, name, in_float32(getattr(builder, name)))
    builder.create_dot = _dot


def _dot(
    self: Any, left: Any, right: Any, total: Any, input_precision: Any, max_num_imprecise_acc: Any
) -> Any:
    """left[.., M, K] @ right[.., K, N] + total, products exact, sums in the total's type but at least float32."""
    operands = []
    for operand in (left, right):
        values = decode(operand.data, operand.dtype.scalar)
        if operand.dtype.scalar == tl.float32 and input_precision == ir.INPUT_PRECISION.TF32:
            values = (np.ascontiguousarray(values).view(np.uint32) & _TF32_MASK).view(np.float32)
        operands.append(values)
    target = total.data.dtype
    sums = np.promote_types(target, np.float32) if target.kind == "f" else target
    product = np.matmul(operands[0].astype(sums), operands[1].astype(sums))
    return upstream.TensorHandle((product + total.data).astype(target), total.dtype.scalar)


def _replace_reductions() -> None:
    reduce_ops, scan_ops = upstream.ReduceOps, upstream.ScanOps
    reduce_fast, scan_fast = reduce_ops.apply_impl, scan_ops.apply_impl
    standard = tl.standard
    ordered = (
        standard._argmin_combine_tie_break_left,
        standard._argmin_combine_tie_break_fast,
        standard._argmax_combine_tie_break_left,
        standard._argmax_combine_tie_break_fast,
    )

    def narrow(inputs: tuple[Any, ...]) -> bool:
        return any(value.dtype.scalar in _VALUES for value in inputs)

    def apply_reduce(self: Any, inputs: tuple[Any, ...]) -> Any:
        if narrow(inputs) or any(self.combine_fn is function for function in ordered):
            return self.generic_reduce(inputs)
        return reduce_fast(self, inputs)

    def apply_scan(self: Any, inputs: tuple[Any, ...]) -> Any:
        if not narrow(inputs):
            return scan_fast(self, inputs)
        numpy_sum, self.combine_fn = self.combine_fn, _Same(self.combine_fn)
        try:
            return scan_fast(self, inputs)
        finally:
            self.combine_fn = numpy_sum

    reduce_ops.apply_impl = apply_reduce
    reduce_ops.generic_reduce = _reduce
    scan_ops.apply_impl = apply_scan
    scan_ops.generic_scan = _scan


class _Same:
    """A combine function that is not recognised as the one whose numpy shortcut is wrong for the type."""

    def __init__(self, combine: Any) -> None:
        self.fn = combine.fn


def _combined(op: Any, left: list[Array], right: list[Array], kinds: list[Any]) -> list[Array]:
    arguments = [
        op.to_tensor(data, kind) for side in (left, right) for data, kind in zip(side, kinds, strict=True)
    ]
    results = op.combine_fn.fn(*arguments)
    results = results if isinstance(results, tuple) else (results,)
    return [
        np.broadcast_to(result.handle.data, data.shape).astype(data.dtype)
        for result, data in zip(results, left, strict=True)
    ]


def _reduce(self: Any, inputs: tuple[Any, ...]) -> list[Any]:
    """Neighbours are combined until one is left: the order of the elements is kept."""
    kinds = [value.dtype for value in inputs]
    arrays = [value.handle.data for value in inputs]
    rank = arrays[0].ndim
    flat = self.axis is None
    parts = [array.reshape(-1) if flat else np.moveaxis(array, self.axis, 0) for array in arrays]
    while parts[0].shape[0] > 1:  # a block's sides are powers of two
        parts = _combined(self, [part[0::2] for part in parts], [part[1::2] for part in parts], kinds)
    results = [part[0] for part in parts]
    if self.keep_dims:
        axes = tuple(range(rank)) if flat else self.axis
        results = [np.expand_dims(result, axes) for result in results]
    return [self.to_tensor(result, kind) for result, kind in zip(results, kinds, strict=True)]


def _scan(self: Any, inputs: tuple[Any, ...]) -> list[Any]:
    """Inclusive scan: after step n every element holds the combination of its last 2**n."""
    kinds = [value.dtype for value in inputs]
    parts = [np.moveaxis(value.handle.data, self.axis, 0) for value in inputs]
    step = 1
    while step < parts[0].shape[0]:
        merged = _combined(self, [np.roll(part, step, axis=0) for part in parts], parts, kinds)
        parts = [np.concatenate([p[:step], m[step:]]) for p, m in zip(parts, merged, strict=True)]
        step *= 2
    arrays = [np.ascontiguousarray(np.moveaxis(part, 0, self.axis)) for part in parts]
    return [self.to_tensor(array, kind) for array, kind in zip(arrays, kinds, strict=True)]
