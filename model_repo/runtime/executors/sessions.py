"""ONNX Runtime sessions of rank programs: their threads, and errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.provider import CPU

_REBUILD = "build the bundle again with `mm2c build … --force`"


def default_threads() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def load_session(
    path: Path,
    threads: int,
    *,
    alone: bool,
    tensors: Mapping[str, object] | None = None,
    providers: Sequence[Any] = CPU,
) -> ort.InferenceSession:
    """A session of one segment. Its weights are mapped from the file next to it, or they are ``tensors``
    (OrtValues by name), whose memory must stay as long as the session.

    ``alone``: it is the process's only program. Then its threads spin between operators, while a step runs.
    The pools of several sessions would spin against each other, so theirs sleep. (A pool that all sessions
    share exists, but in Python it is process-wide: every other session in the process would have to use it
    too.) ``providers``: ONNX Runtime's execution providers, the first of which must be there.

    Raises BundleError where a file is missing, cut short, or not a model that this ONNX Runtime can run, and where
    the first provider cannot be used.
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
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if first not in CPU:
        # Steps have their memory from the arena that all sessions of a device share, weights their own, exactly.
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    try:
        if tensors:
            options.add_external_initializers(list(tensors), list(tensors.values()))
        session = ort.InferenceSession(
            str(path), options, providers=list(providers), enable_fallback=int(first in CPU)
        )
    except Exception as error:
        raise BundleError(
            f"ONNX Runtime {ort.__version__} cannot load a program: {error}", where=str(path), remedy=_REBUILD
        ) from error
    if first not in session.get_providers():  # it says so in its log and goes on without
        raise BundleError(
            f"ONNX Runtime {ort.__version__} cannot use its {first}, and would run on {session.get_providers()[0]}",
            where=str(ort.__file__),
            remedy="the log names the library that is missing: pip install 'mm2c[gpu]' brings all of them",
        )
    return session
