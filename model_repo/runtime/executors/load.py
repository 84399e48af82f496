"""The executor of a bundle's engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.base import Executor, RankExecutor
from mm2c_runtime.executors.provider import ProviderName
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
    provider: ProviderName = "cpu",
) -> Executor:
    """``lowering``, ``threads`` and ``provider`` are for ONNX Runtime, which takes ``kv_tokens`` on a GPU only. ``ops``
    ("module:class", which replaces the kernels, or the TensorRT library, and runs on the CPU, for tests) is for the
    others. Raises BundleError."""
    if manifest.engine != "onnxruntime":
        return _on_gpu(folder, manifest, kv_tokens, ops)
    return _onnxruntime(folder, manifest, lowering, threads, kv_tokens, provider)


def _onnxruntime(
    folder: Path,
    manifest: Manifest,
    lowering: str,
    threads: int | None,
    kv_tokens: int | None,
    provider: ProviderName,
) -> Executor:
    extra = "gpu" if provider == "cuda" else "cpu"
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise BundleError(
            f"the bundle runs on ONNX Runtime, which cannot be imported: {error}",
            where=sys.prefix,
            remedy=f"pip install 'mm2c[{extra}]', or `pip install '.[{extra}]'` in mm2c's folder",
        ) from None
    from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor

    if provider == "cpu":
        return OnnxRuntimeExecutor(folder, manifest, lowering=lowering, threads=threads)
    from mm2c_runtime.executors.lowering import checked_lowering
    from mm2c_runtime.executors.provider import open_devices

    ranks = checked_lowering(folder, manifest, lowering).ranks
    return OnnxRuntimeExecutor(
        folder,
        manifest,
        lowering=lowering,
        threads=threads,
        devices=open_devices(len(ranks)),
        kv_tokens=kv_tokens,
    )


def _on_gpu(folder: Path, manifest: Manifest, kv_tokens: int | None, ops: str) -> Executor:
    """One rank in this process; several in processes of their own, each with the GPU of its number."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise BundleError(
            f"the bundle runs on a GPU through torch, and torch cannot be imported: {error}",
            where=sys.prefix,
            remedy="pip install 'mm2c[cuda]', or `pip install '.[cuda]'` in mm2c's folder",
        ) from None
    if manifest.tensorrt is not None:  # before processes are started for nothing
        from mm2c_runtime.executors.tensorrt.checks import check_built

        check_built(folder, manifest.tensorrt)
    program = manifest.cuda or manifest.tensorrt
    ranks = 1 if program is None else len(program.ranks)
    if ranks > 1:
        from mm2c_runtime.ranks.executor import RankedExecutor

        devices = [REFERENCE_DEVICE] * ranks if ops else [f"cuda:{rank}" for rank in range(ranks)]
        backend = "gloo" if ops else "nccl"
        groups = manifest.mapping.attention_dp
        return RankedExecutor(
            folder, devices=devices, groups=groups, backend=backend, kv_tokens=kv_tokens, ops=ops
        )
    device = REFERENCE_DEVICE if ops else "cuda:0"
    return rank_executor(folder, manifest, device=device, ops=ops, kv_tokens=kv_tokens)


def rank_executor(folder: Path, manifest: Manifest, *, ops: str, **options: Any) -> RankExecutor:
    """The executor of one rank on a GPU. ``options``: as its class takes them. Raises BundleError."""
    if manifest.engine in ("tensorrt", "tensorrt-rtx"):
        from mm2c_runtime.executors.tensorrt import TensorRTExecutor

        return TensorRTExecutor(folder, manifest, library=named(ops), **options)
    from mm2c_runtime.executors.cuda import CudaExecutor

    return CudaExecutor(folder, manifest, ops=named(ops), **options)


def named(name: str) -> Any:
    """An instance of the class "module:class"; None for the empty name."""
    if not name:
        return None
    from importlib import import_module

    module, _, kind = name.partition(":")
    return getattr(import_module(module), kind)()
