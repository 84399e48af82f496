"""ONNX Runtime sessions of rank programs: one thread pool, one arena, and errors that say what to do."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import onnxruntime as ort

from mm2c_runtime.errors import BundleError

_REBUILD = "build the bundle again with `mm2c build … --force`"


@cache
def share_pool(threads: int) -> int:
    """Give all sessions of this process one intra-op thread pool; returns its size.

    A program of many segments would otherwise start a pool for each of them. ONNX Runtime makes the pool with the
    first session of the process, so that only the first call's ``threads`` count.
    """
    ort.set_global_thread_pool_sizes(threads, 1)
    return threads


def default_threads() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def load_session(path: Path, threads: int) -> ort.InferenceSession:
    """A CPU session of one segment; its weights are mapped from the file next to it.

    Raises BundleError where a file is missing, cut short, or not a model that this ONNX Runtime can run.
    """
    if not path.is_file():
        raise BundleError("a program of the bundle is missing", where=str(path), remedy=_REBUILD)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Spinning threads between the short runs of segments would take the CPUs from sampler and server.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(
            f"ONNX Runtime {ort.__version__} cannot load a program: {error}", where=str(path), remedy=_REBUILD
        ) from error
