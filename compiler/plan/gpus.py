"""The GPUs that a plan knows: memory as the driver reports it, and the speeds that bound a step.

``memory`` is the total that nvidia-smi (AMD: the HIP runtime) shows, which is neither the gigabytes of the name nor
its gibibytes. Bandwidths are the vendors' figures, in one direction for links; nothing here was measured.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace

from mm2c.errors import UserError

MIB = 2**20
KERNELS = (
    80,
    86,
    87,
    89,
    90,
    100,
    120,
)  # compute capabilities, times ten, that the plugin library has kernels for
NVLINK_MICROSECONDS, PCIE_MICROSECONDS = 8.0, 20.0  # of a short message among the GPUs of a machine; assumed


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU. ``nominal``: GB of its name; ``memory``: bytes that the driver reports; ``bandwidth`` of its
    memory and ``link`` to the other GPUs of the machine, in bytes a second; ``sm``: compute capability times ten,
    0 where mm2c has no engine; ``machine``: GPUs of a usual machine, all linked."""

    name: str
    title: str
    nominal: int
    memory: int
    bandwidth: float
    link: float
    sm: int
    nvlink: bool = True
    machine: int = 8
    aliases: tuple[str, ...] = ()
    known: bool = True  # False: a size that was given alone, with assumed speeds

    @property
    def vendor(self) -> str:
        return "NVIDIA" if self.sm or not self.known else "AMD"

    @property
    def message_seconds(self) -> float:
        """What a short message takes, however short."""
        return (NVLINK_MICROSECONDS if self.nvlink else PCIE_MICROSECONDS) * 1e-6

    @property
    def engine_note(self) -> str:
        """Why mm2c cannot serve on it; nothing where it can."""
        if self.sm in KERNELS or not self.known:
            return ""
        if self.sm:
            lacking = f"kernels for compute capability {self.sm / 10}"
        else:
            lacking = f"engine for {self.vendor} GPUs"
        return f"mm2c has no {lacking}: the sizes hold, the bundle would not run"


def _gpu(
    name: str,
    title: str,
    nominal: int,
    mib: int,
    bandwidth: float,
    link: float,
    sm: int,
    *aliases: str,
    nvlink: bool = True,
    machine: int = 8,
) -> Gpu:
    """``bandwidth`` and ``link`` in GB/s."""
    return Gpu(name, title, nominal, mib * MIB, bandwidth * 1e9, link * 1e9, sm, nvlink, machine, aliases)


GPUS: tuple[Gpu, ...] = (
    _gpu("rtx-pro-6000", "RTX PRO 6000 Blackwell", 96, 97887, 1792, 64, 120, "rtx6000pro", "pro6000",
         "rtxpro6000blackwell", nvlink=False),
    _gpu("h100", "H100 SXM", 80, 81559, 3350, 450, 90, "h100-80", "h100-sxm"),
    _gpu("h100-pcie", "H100 PCIe", 80, 81559, 2039, 64, 90, nvlink=False),
    _gpu("h100-nvl", "H100 NVL", 94, 95830, 3938, 300, 90, "h100-94"),
    _gpu("h20", "H20", 96, 97871, 4000, 450, 90, "h20-96"),
    _gpu("h20-141", "H20-3e", 141, 143771, 4800, 450, 90, "h20-3e"),
    _gpu("h200", "H200", 141, 143771, 4800, 450, 90, "h200-141", "h200-sxm"),
    _gpu("h800", "H800", 80, 81559, 3350, 200, 90, "h800-80"),
    _gpu("a100-40", "A100 40 GB", 40, 40960, 1555, 300, 80, "a100-40gb"),
    _gpu("a100", "A100 80 GB", 80, 81920, 2039, 300, 80, "a100-80", "a100-80gb"),
    _gpu("a800", "A800 80 GB", 80, 81920, 2039, 200, 80, "a800-80"),
    _gpu("b200", "B200", 180, 183359, 8000, 900, 100, "b200-180", "b200-192"),
    _gpu("b300", "B300", 288, 275040, 8000, 900, 103, "b300-288"),
    _gpu("gb200", "GB200", 192, 189471, 8000, 900, 100, "gb200-192", machine=4),
    _gpu("gb300", "GB300", 288, 284208, 8000, 900, 103, machine=4),
    _gpu("l40s", "L40S", 48, 46068, 864, 32, 89, nvlink=False),
    _gpu("rtx-6000-ada", "RTX 6000 Ada", 48, 49140, 960, 32, 89, "6000-ada", nvlink=False),
    _gpu("rtx-5090", "GeForce RTX 5090", 32, 32607, 1792, 64, 120, "5090", nvlink=False),
    _gpu("rtx-4090", "GeForce RTX 4090", 24, 24564, 1008, 32, 89, "4090", nvlink=False),
    _gpu("mi300x", "MI300X", 192, 196592, 5300, 448, 0),
    _gpu("mi325x", "MI325X", 256, 262128, 6000, 448, 0),
    _gpu("mi350x", "MI350X", 288, 294896, 8000, 537, 0),
    _gpu("mi355x", "MI355X", 288, 294896, 8000, 537, 0),
)  # fmt: skip
USUAL = ("a100", "h100", "rtx-pro-6000", "h200", "b200")  # shown where no GPU was asked for


def find_gpu(name: str) -> Gpu:
    """The GPU that ``name`` means, however it is spelt (``RTX PRO 6000``, ``H100-80GB``, ``nvidia h200``).

    Raises UserError with what it might have been, and all names.
    """
    wanted = _plain(name)
    spelt = {_plain(known): gpu for gpu in GPUS for known in (gpu.name, gpu.title, *gpu.aliases)}
    if wanted in spelt:
        return spelt[wanted]
    near = difflib.get_close_matches(wanted, list(spelt), n=3, cutoff=0.5)
    hint = list(dict.fromkeys(spelt[one].name for one in near))
    names = ", ".join(gpu.name for gpu in GPUS)
    raise UserError(
        f"no GPU is known as {name!r}" + (f": did you mean {' or '.join(hint)}?" if hint else ""),
        where="--gpu",
        remedy=f"one of {names}; or --memory with the size of any other, as in --memory 96GiB",
    )


def gpu_of_size(memory: int, title: str) -> Gpu:
    """A GPU of which only the memory is known. Its speeds are assumed: HBM of 2 TB/s and PCIe 5 between GPUs."""
    nominal = round(memory / 1e9)
    return Gpu(title, f"a GPU of {title}", nominal, memory, 2e12, 64e9, 0, nvlink=False, known=False)


def with_memory(gpu: Gpu, memory: int) -> Gpu:
    """``gpu`` with another size of memory, as where a part of it is taken or it was cut into several."""
    return replace(gpu, memory=memory, title=f"{gpu.title} with {memory / 2**30:,.1f} GiB")


def _plain(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for word in ("nvidia", "geforce", "amd", "instinct", "tesla"):
        plain = plain.removeprefix(word)
    return plain.removesuffix("gb") if re.search(r"\d+gb$", plain) else plain
