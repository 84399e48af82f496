"""An NCCL communicator of all ranks, for the collectives inside plans: they need one of their own, which no stream of
torch's uses."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.collectives import Collectives

NAMES = ("libnccl.so.2", "libnccl.so")  # the names that TensorRT looks for, in its order
_ID_BYTES = 128
_CAPSULE = b"ncclComm_t"  # kept: a capsule does not copy its name
_REMEDY = (
    "install NCCL (pip install nvidia-nccl-cu13) and name its folder in LD_LIBRARY_PATH, "
    "or build for one rank with `--tp 1`"
)


class _UniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_char * _ID_BYTES)]  # passed by value, so its size counts


class NcclCommunicator:
    """``handle``: a capsule of the ncclComm_t."""

    def __init__(self, library: Any, communicator: ctypes.c_void_p) -> None:
        self._library, self._communicator = library, communicator
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self.handle: Any = new(communicator, _CAPSULE, None)

    def close(self) -> None:
        """Nothing may use it any more. Safe to repeat."""
        if self._communicator:
            self._library.ncclCommDestroy(self._communicator)
            self._communicator = ctypes.c_void_p()


def open_nccl(load: Callable[[str], Any] = ctypes.CDLL) -> Any:
    """The library that TensorRT will find by its name: torch's, where torch has loaded it. Raises BundleError where
    there is none."""
    reasons = []
    for name in NAMES:
        try:
            library = load(name)
            break
        except OSError as error:
            reasons.append(str(error))
    else:
        raise BundleError(
            f"plans of several ranks need NCCL, which is not found: {'; '.join(reasons)}",
            where="LD_LIBRARY_PATH",
            remedy=_REMEDY,
        )
    library.ncclGetErrorString.restype = ctypes.c_char_p
    library.ncclGetErrorString.argtypes = [ctypes.c_int]
    library.ncclGetUniqueId.argtypes = [ctypes.POINTER(_UniqueId)]
    library.ncclCommInitRank.argtypes = [
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_int,
        _UniqueId,
        ctypes.c_int,
    ]
    library.ncclCommDestroy.argtypes = [ctypes.c_void_p]
    return library


def join_communicator(
    collectives: Collectives, device: torch.device, library: Any = None
) -> NcclCommunicator:
    """Every rank calls this, with its own device. Raises BundleError where NCCL is missing or fails."""
    library = open_nccl() if library is None else library
    own = _UniqueId()
    if collectives.rank == 0:
        _check(library, "ncclGetUniqueId", library.ncclGetUniqueId(ctypes.byref(own)))
    shared = collectives.first_bytes(bytes(memoryview(own).cast("B")))
    made = ctypes.c_void_p()
    given = _UniqueId.from_buffer_copy(shared)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # a communicator is of the device that is current
    status = library.ncclCommInitRank(ctypes.byref(made), collectives.ranks, given, collectives.rank)
    _check(library, "ncclCommInitRank", status)
    return NcclCommunicator(library, made)


def _check(library: Any, what: str, status: int) -> None:
    if status:
        text = library.ncclGetErrorString(status)
        reason = text.decode(errors="replace") if isinstance(text, bytes) else str(status)
        raise BundleError(
            f"{what} failed: {reason}", where="NCCL", remedy="NCCL_DEBUG=INFO says more; see this rank's log"
        )
