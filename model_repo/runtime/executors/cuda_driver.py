"""GPUs through CUDA's driver (libcuda), without torch: how many there are, their memory, copies within it."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

from mm2c_runtime.errors import BundleError

LIBRARY = "libcuda.so.1"
_ON_DEVICE = 2  # CU_MEMORYTYPE_DEVICE
_OUT_OF_MEMORY = 2
_NO_DEVICE = 100
_GIB = 2**30


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = [
        (side + name, kind)
        for side in ("source_", "target_")
        for name, kind in (
            ("x", c_size_t),
            ("y", c_size_t),
            ("type", c_uint),
            ("host", c_void_p),
            ("device", c_uint64),
            ("array", c_void_p),
            ("pitch", c_size_t),
        )
    ] + [("width", c_size_t), ("height", c_size_t)]


_ARGUMENTS: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuDriverGetVersion": [c_void_p],
    "cuDeviceGetCount": [c_void_p],
    "cuDeviceGet": [c_void_p, c_int],
    "cuDeviceGetName": [c_void_p, c_int, c_int],
    "cuDevicePrimaryCtxRetain": [c_void_p, c_int],
    "cuDevicePrimaryCtxRelease_v2": [c_int],
    "cuCtxSetCurrent": [c_void_p],
    "cuCtxSynchronize": [],
    "cuMemGetInfo_v2": [c_void_p, c_void_p],
    "cuMemAlloc_v2": [c_void_p, c_size_t],
    "cuMemFree_v2": [c_uint64],
    "cuMemsetD8_v2": [c_uint64, ctypes.c_ubyte, c_size_t],
    "cuMemsetD2D32_v2": [c_uint64, c_size_t, c_uint, c_size_t, c_size_t],
    "cuMemcpy2DUnaligned_v2": [c_void_p],
    "cuGetErrorString": [c_int, c_void_p],
}


class Driver:
    """The driver of this machine. Raises BundleError where there is none, or no GPU that it shows this process."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise BundleError(
                f"there is no NVIDIA driver on this machine: {error}",
                where=library,
                remedy="serve on a machine with an NVIDIA GPU, or leave the provider at cpu",
            ) from None
        for name, arguments in _ARGUMENTS.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = arguments, c_int
        status = self._library.cuInit(0)
        count = c_int(0)
        if status == 0:
            self.call("cuDeviceGetCount", byref(count))
        if status not in (0, _NO_DEVICE) or count.value == 0:
            reason = "" if status in (0, _NO_DEVICE) else f": {self.error(status)}"
            raise BundleError(
                f"no NVIDIA GPU can be used: CUDA's driver shows none{reason}",
                where="CUDA_VISIBLE_DEVICES, nvidia-smi",
                remedy="make a GPU visible to this process, or leave the provider at cpu",
            )
        self.count = count.value

    @property
    def version(self) -> tuple[int, int]:
        """Of CUDA, up to which the driver goes."""
        number = c_int()
        self.call("cuDriverGetVersion", byref(number))
        return number.value // 1000, number.value % 1000 // 10

    def call(self, name: str, *arguments: Any) -> None:
        """Raises RuntimeError with the driver's own words where ``name`` fails."""
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise CudaError(f"{name}: {self.error(status)}", status)

    def error(self, status: int) -> str:
        text = ctypes.c_char_p()
        found = self._library.cuGetErrorString(status, byref(text))
        return text.value.decode() if found == 0 and text.value else f"CUDA error {status}"

    def name(self, number: int) -> str:
        device, text = c_int(), ctypes.create_string_buffer(256)
        self.call("cuDeviceGet", byref(device), number)
        self.call("cuDeviceGetName", text, len(text), device)
        return text.value.decode(errors="replace")


class CudaError(RuntimeError):
    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class CudaDevice:
    """GPU ``number`` of those that this process sees (``mm2c_runtime.executors.device.Device``), in the context that
    ONNX Runtime uses as well. Any thread may call, one at a time."""

    kind = "cuda"

    def __init__(self, driver: Driver, number: int) -> None:
        self._driver, self.number = driver, number
        device, self._context = c_int(), c_void_p()
        driver.call("cuDeviceGet", byref(device), number)
        self._device = device.value
        self._open = False
        self._held: set[int] = set()
        driver.call("cuDevicePrimaryCtxRetain", byref(self._context), self._device)
        self._open = True

    @property
    def name(self) -> str:
        return self._driver.name(self.number)

    def free_bytes(self) -> tuple[int, int]:
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> int:
        address = c_uint64()
        try:
            self._call("cuMemAlloc_v2", byref(address), size)
        except CudaError as error:
            if error.status != _OUT_OF_MEMORY:
                raise
            free, total = self.free_bytes()
            raise BundleError(
                f"{self.name} has no room for {size / _GIB:.2f} GiB more: {free / _GIB:.2f} GiB of "
                f"{total / _GIB:.2f} GiB are free",
                where=f"cuda:{self.number}",
                remedy="end other programs on this GPU, or serve with fewer kv_tokens",
            ) from None
        self._held.add(address.value)
        self._call("cuMemsetD8_v2", address, 0, size)
        self.synchronize()
        return address.value

    def release(self, address: int) -> None:
        self._held.discard(address)
        self._call("cuMemFree_v2", address)

    def copy(self, target: int, source: int, *, width: int, height: int, pitch: int) -> None:
        sides = {f"{side}_type": _ON_DEVICE for side in ("source", "target")}
        pitches = {f"{side}_pitch": pitch for side in ("source", "target")}
        copy = _Copy2D(
            source_device=source, target_device=target, width=width, height=height, **sides, **pitches
        )
        self._call("cuMemcpy2DUnaligned_v2", byref(copy))

    def zero(self, target: int, *, width: int, height: int, pitch: int) -> None:
        self._call("cuMemsetD2D32_v2", target, pitch, 0, width // 4, height)

    def synchronize(self) -> None:
        self._call("cuCtxSynchronize")

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        try:
            for address in self._held:
                self._call("cuMemFree_v2", address)
            self._held.clear()
            self._driver.call("cuDevicePrimaryCtxRelease_v2", self._device)
        except CudaError:  # the context is lost, and its memory with it
            self._held.clear()

    def _call(self, name: str, *arguments: Any) -> None:
        self._driver.call("cuCtxSetCurrent", self._context)
        self._driver.call(name, *arguments)
