"""Counts the machine instructions of cubins with nvdisasm.

nvdisasm takes half a second to start whatever it reads, so the code of many kernels is put into one file of raw
instructions and told apart by address.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mm2c_plugins.kernels import toolchain

_WANTED = {
    *(
        "HMMA",
        "HGMMA",
        "QMMA",
        "QGMMA",
        "IMMA",
        "IGMMA",
        "DMMA",
        "UTCHMMA",
        "UTCQMMA",
        "UTCIMMA",
    ),  # matrix products
    *("LDL", "STL"),  # local memory
    *("LDGSTS", "UTMALDG", "LDSM"),  # asynchronous copies, loads of matrix fragments
}
_LINE = re.compile(r"/\*([0-9a-f]+)\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_]*)")
_INSTRUCTION_BYTES = 16
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_PROGBITS, _EXECUTABLE = 1, 4


class DisassemblyError(Exception):
    """A file that is no cubin, or nvdisasm's own message."""


def code(cubin: bytes) -> bytes:
    """The machine code of a cubin: its executable sections, one after the other."""
    if cubin[:5] != b"\x7fELF\x02":
        raise DisassemblyError("not a cubin: no 64-bit ELF header")
    header = _ELF_HEADER.unpack_from(cubin)
    table, size, count = header[6], header[11], header[12]
    found = b""
    for index in range(count):
        _, kind, flags, _, offset, length, *_ = _SECTION.unpack_from(cubin, table + index * size)
        if kind == _PROGBITS and flags & _EXECUTABLE:
            found += cubin[offset : offset + length]
    return found


def count_instructions(sm: int, cubins: Sequence[bytes]) -> list[dict[str, int]]:
    """How often each instruction of interest is in each cubin, by its name."""
    parts = [code(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as raw:
        raw.write(b"".join(parts))
        raw.flush()
        return split_listing(_listing(sm, Path(raw.name)), [len(part) for part in parts])


def _listing(sm: int, raw: Path) -> str:
    target = toolchain.TARGETS[sm].replace("sm_", "SM")
    command = [str(toolchain.find_nvdisasm()), "--no-dataflow", "--binary", target, str(raw)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise DisassemblyError(f"nvdisasm: {run.stderr.strip()[-500:]}")
    return run.stdout


def split_listing(listing: str, sizes: Sequence[int]) -> list[dict[str, int]]:
    """Counts for pieces of ``sizes`` bytes that were listed as one. Raises where a piece is not fully listed."""
    lines = [(int(address, 16), name) for address, name in _LINE.findall(listing)]
    counts, start, position = [], 0, 0
    for size in sizes:
        found: Counter[str] = Counter()
        before = position
        while position < len(lines) and lines[position][0] < start + size:
            found[lines[position][1]] += 1
            position += 1
        if (position - before) * _INSTRUCTION_BYTES != size:
            raise DisassemblyError(f"{position - before} instructions listed for {size} bytes")
        counts.append({name: found[name] for name in sorted(found) if name in _WANTED})
        start += size
    return counts
