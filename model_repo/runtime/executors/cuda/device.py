"""The device of a rank: whether it can run the kernels, and whether it is still there after a failure."""

from __future__ import annotations

import torch

from mm2c_runtime.errors import BundleError

# Compute capabilities that kernels were compiled for; those of one major number are compatible upwards.
SUPPORTED = ((8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (12, 0))
DRIVER = 13000  # CUDA 13.0, as the driver counts


def open_device(name: str, *, kernels: bool = True) -> torch.device:
    """The device ``cuda:N`` (or ``cpu``), made this thread's current one. ``kernels``: whether our own will run. Raises
    BundleError, with what to do about it, where it cannot run the bundle."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BundleError(f"{name!r} is no device", remedy="name it cuda:0, cuda:1, …") from None
    if device.type == "cpu":
        return device
    if torch.version.cuda is None:
        raise BundleError(
            f"this torch ({torch.__version__}) was built without CUDA",
            where=str(torch.__file__),
            remedy="install torch for CUDA 13, as `pip install 'mm2c[cuda]'` does",
        )
    if not torch.cuda.is_available():
        raise BundleError(
            "no NVIDIA GPU can be used: torch finds none, or no driver for CUDA "
            f"{torch.version.cuda} (`nvidia-smi` shows what there is)",
            where=name,
            remedy="serve on a machine with an NVIDIA GPU and its driver of release 580 or newer, "
            "or build with `--engine onnxruntime`",
        )
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise BundleError(
            f"there is no {name}: this machine shows {torch.cuda.device_count()} GPU(s)",
            where="CUDA_VISIBLE_DEVICES",
            remedy="make more GPUs visible, or build for fewer ranks (--tp)",
        )
    capability = torch.cuda.get_device_capability(index)
    if kernels and capability not in SUPPORTED:
        known = ", ".join(f"{major}.{minor}" for major, minor in SUPPORTED)
        raise BundleError(
            f"{torch.cuda.get_device_name(index)} has compute capability {capability[0]}.{capability[1]}; "
            f"the kernels are compiled for {known}",
            where=name,
            remedy="serve on one of these GPUs, or build with `--engine onnxruntime`",
        )
    driver = torch._C._cuda_getDriverVersion()
    if driver < DRIVER:
        raise BundleError(
            f"the driver is for CUDA {driver // 1000}.{driver % 1000 // 10}, 13.0 is needed",
            where=name,
            remedy="install NVIDIA's driver of release 580 or newer",
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    # Sums of products are rounded once, as in our own kernels.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return device


def is_lost(device: torch.device) -> bool:
    """Whether a failure has taken the device's context with it: every further call then fails too."""
    if device.type == "cpu":
        return False
    try:
        torch.cuda.synchronize(device)
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError:
        return True
    return False
