"""From Triton's PTX to a cubin, with what ptxas tells of it.

Triton appends two pointers (global and profile scratch) to every kernel. Ours use neither, so the parameters are cut
from the PTX and a launch passes just what the kernel declares.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mm2c_plugins.kernels import toolchain

_ENTRY = re.compile(r"(\.visible \.entry (\w+)\()(.*?)(\n\))", re.S)
_SCRATCH = 2


class AssemblyError(Exception):
    """PTX that cannot be stripped or assembled; the message has the reason."""


@dataclass(frozen=True)
class Assembled:
    """``parameters``: of the entry; ``stack``, ``spills``: bytes a thread."""

    entry: str
    parameters: int
    target: str
    ptx_version: str
    registers: int
    stack: int
    spills: int

    def figures(self) -> dict[str, Any]:
        return asdict(self)


def strip_scratch(ptx: str) -> str:
    """The PTX without the two trailing scratch pointers. Raises AssemblyError where one is read."""
    header = _ENTRY.search(ptx)
    if header is None:
        raise AssemblyError("the PTX has no entry")
    name, declared = header.group(2), header.group(3).strip().split(",\n")
    body = ptx[header.end() :]
    for index in range(len(declared) - _SCRATCH, len(declared)):
        if re.search(rf"\b{name}_param_{index}\b", body):
            raise AssemblyError(
                f"{name} reads its scratch pointer (parameter {index}): nothing would be behind it"
            )
    kept = declared[:-_SCRATCH]
    return ptx[: header.start(3)] + "\n" + ",\n".join(kept) + ptx[header.start(4) :]


def assemble(ptx: str, sm: int) -> tuple[bytes, Assembled]:
    """The cubin of a stripped PTX. Raises AssemblyError with ptxas's message."""
    header = _ENTRY.search(ptx)
    version = re.search(r"^\.version (\S+)", ptx, re.M)
    target = re.search(r"^\.target (\w+)", ptx, re.M)
    if header is None or version is None or target is None:
        raise AssemblyError("the PTX has no entry, version or target")
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx, encoding="utf-8")
        # Triton passes this level too: the default one of ptxas 13 miscompiles some of its kernels
        flags = ["-v", "--regAllocOptLevel=2", f"--gpu-name={toolchain.TARGETS[sm]}"]
        command = [str(toolchain.find_ptxas().path), *flags, str(source), "-o", str(binary)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            raise AssemblyError(f"ptxas: {(run.stderr or run.stdout).strip()[-1500:]}")
        usage = parse_usage(run.stderr + run.stdout)
        cubin = binary.read_bytes()
    parameters = header.group(3).count(".param")
    figures = Assembled(
        entry=header.group(2),
        parameters=parameters,
        target=target.group(1),
        ptx_version=version.group(1),
        **usage,
    )
    return cubin, figures


def parse_usage(log: str) -> dict[str, int]:
    """registers, stack and spills (stores and loads, bytes) from ptxas -v."""
    registers = re.search(r"Used (\d+) registers", log)
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if registers is None or frame is None:
        raise AssemblyError(f"ptxas said nothing of registers and spills: {log.strip()[-500:]}")
    stack, stores, loads = (int(number) for number in frame.groups())
    return {"registers": int(registers.group(1)), "stack": stack, "spills": stores + loads}
