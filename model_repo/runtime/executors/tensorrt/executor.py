"""The executor of one rank of a bundle for TensorRT or TensorRT-RTX."""

from __future__ import annotations

from pathlib import Path

from mm2c_runtime.executors.cuda.collectives import Collectives, SingleRank
from mm2c_runtime.executors.cuda.device import open_device
from mm2c_runtime.executors.cuda.executor import DeviceExecutor
from mm2c_runtime.executors.tensorrt.library import Library
from mm2c_runtime.executors.tensorrt.loading import load_plans
from mm2c_runtime.manifest import Manifest


class TensorRTExecutor(DeviceExecutor):
    """``library`` replaces the installed TensorRT, and then ``device`` may be "cpu": the control path is the same but
    for streams and CUDA graphs. Where rows are linear, ``kv_tokens`` (or what the GPU has room for) may lower the
    number of rows. Raises BundleError where the bundle, the library or the GPU cannot be used."""

    def __init__(
        self,
        bundle: Path | str,
        manifest: Manifest,
        *,
        rank: int = 0,
        collectives: Collectives | None = None,
        device: str = "cuda:0",
        library: Library | None = None,
        kv_tokens: int | None = None,
    ) -> None:
        found = collectives or SingleRank()
        if found.rank != rank:
            raise ValueError(f"rank {rank} was given the collectives of rank {found.rank}")
        place = open_device(device, kernels=manifest.engine != "tensorrt-rtx")
        loaded = load_plans(Path(bundle), manifest, found, place, library)
        super().__init__(manifest, found, place, loaded, kv_tokens=kv_tokens, where=str(bundle))
