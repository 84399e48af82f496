"""The executor of bundles for NVIDIA GPUs: our plugin library for the dialect's ops, torch for the few others."""

from __future__ import annotations

from mm2c_runtime.executors.cuda.executor import CudaExecutor

__all__ = ["CudaExecutor"]
