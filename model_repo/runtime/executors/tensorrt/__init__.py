"""The executor of bundles for TensorRT and TensorRT-RTX: plans run stage after stage, their weights bound as inputs."""

from __future__ import annotations

from mm2c_runtime.executors.tensorrt.executor import TensorRTExecutor

__all__ = ["TensorRTExecutor"]
