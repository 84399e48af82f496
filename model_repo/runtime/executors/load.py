"""The executor of a bundle's engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.base import Executor
from mm2c_runtime.manifest import Manifest

REFERENCE_DEVICE = "cpu"  # where replaced kernels run


def load_executor(
    folder: Path,
    manifest: Manifest,
    *,
    lowering: str,
    threads: int | None,
    kv_tokens: int | None,
    ops: str = "",
) -> Executor:
    """``lowering`` and ``threads`` are for ONNX Runtime. ``kv_tokens`` and ``ops`` ("module:class", which replaces the
    kernels and runs on the CPU, for tests) are for the cuda engine. Raises BundleError."""
    if manifest.engine == "cuda":
        return _cuda(folder, manifest, kv_tokens, ops)
    return _onnxruntime(folder, manifest, lowering, threads)


def _onnxruntime(folder: Path, manifest: Manifest, lowering: str, threads: int | None) -> Executor:
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise BundleError(
            f"the bundle runs on ONNX Runtime, which cannot be imported: {error}",
            where=sys.prefix,
            remedy="pip install 'mm2c[cpu]', or `pip install '.[cpu]'` in mm2c's folder",
        ) from None
    from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor

    return OnnxRuntimeExecutor(folder, manifest, lowering=lowering, threads=threads)


def _cuda(folder: Path, manifest: Manifest, kv_tokens: int | None, ops: str) -> Executor:
    """One rank in this process; several in processes of their own, each with the GPU of its number."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise BundleError(
            f"the bundle runs on torch and its own kernels, and torch cannot be imported: {error}",
            where=sys.prefix,
            remedy="pip install 'mm2c[cuda]', or `pip install '.[cuda]'` in mm2c's folder",
        ) from None
    ranks = 1 if manifest.cuda is None else len(manifest.cuda.ranks)
    if ranks > 1:
        from mm2c_runtime.ranks.executor import RankedExecutor

        devices = [REFERENCE_DEVICE] * ranks if ops else [f"cuda:{rank}" for rank in range(ranks)]
        backend = "gloo" if ops else "nccl"
        groups = manifest.mapping.attention_dp
        return RankedExecutor(
            folder, devices=devices, groups=groups, backend=backend, kv_tokens=kv_tokens, ops=ops
        )
    from mm2c_runtime.executors.cuda import CudaExecutor

    device = REFERENCE_DEVICE if ops else "cuda:0"
    return CudaExecutor(folder, manifest, device=device, ops=named(ops), kv_tokens=kv_tokens)


def named(name: str) -> Any:
    """An instance of the class "module:class"; None for the empty name."""
    if not name:
        return None
    from importlib import import_module

    module, _, kind = name.partition(":")
    return getattr(import_module(module), kind)()
