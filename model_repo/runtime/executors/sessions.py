"""ONNX Runtime sessions of rank programs: their threads, and errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from mm2c_runtime.errors import BundleError

_REBUILD = "build the bundle again with `mm2c build … --force`"


def default_threads() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def load_session(
    path: Path, threads: int, *, alone: bool, tensors: Mapping[str, object] | None = None
) -> ort.InferenceSession:
    """A CPU session of one segment. Its weights are mapped from the file next to it, or they are ``tensors``
    (OrtValues by name), whose memory must stay as long as the session.

    ``alone``: it is the process's only program. Then its threads spin between operators, while a step runs.
    The pools of several sessions would spin against each other, so theirs sleep. (A pool that all sessions
    share exists, but in Python it is process-wide: every other session in the process would have to use it
    too.)

    Raises BundleError where a file is missing, cut short, or not a model that this ONNX Runtime can run.
    """
    if not path.is_file():
        raise BundleError("a program of the bundle is missing", where=str(path), remedy=_REBUILD)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if alone:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    else:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        if tensors:
            options.add_external_initializers(list(tensors), list(tensors.values()))
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(
            f"ONNX Runtime {ort.__version__} cannot load a program: {error}", where=str(path), remedy=_REBUILD
        ) from error
