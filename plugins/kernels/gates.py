"""What a cubin must be like, checked from the figures in kernels.json: no GPU and no tool is needed here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mm2c_plugins.kernels import catalogue, toolchain

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """Bytes and counts of one architecture. ``block_shared``: what a block may ask for; ``shared``: what an SM has."""

    block_shared: int
    shared: int
    warps: int
    blocks: int
    registers: int = 65536


# CUDA C++ programming guide, "Technical specifications per compute capability". The cubins of sm_80 also run on 8.6,
# whose limits they keep; Ada and the small Blackwells are alike: 99 KiB a block.
LIMITS = {
    80: Limits(block_shared=101376, shared=102400, warps=48, blocks=16),
    89: Limits(block_shared=101376, shared=102400, warps=48, blocks=24),
    90: Limits(block_shared=232448, shared=233472, warps=64, blocks=32),
    100: Limits(block_shared=232448, shared=233472, warps=64, blocks=32),
    120: Limits(block_shared=101376, shared=102400, warps=48, blocks=24),
}
MAX_REGISTERS = 255  # a thread
_RESERVED_SHARED = 1024  # taken from an SM for every block
_REGISTER_UNIT = 256  # registers are given to a warp in these steps
_WARP_UNIT = 4

# Matrix instructions for 16-bit operands. From 64 rows on, Hopper and the large Blackwell have asynchronous ones.
_WARP_PRODUCT = "HMMA"
_GROUP_PRODUCT = {90: "HGMMA", 100: "UTCHMMA"}
_GROUP_ROWS = 64


def occupancy(record: Record) -> int:
    """Blocks of the kernel that one SM holds at a time; 0 if it cannot run."""
    limits, warps = LIMITS[record["sm"]], record["num_warps"]
    per_warp = -(-record["registers"] * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
    warps_by_registers = limits.registers // per_warp // _WARP_UNIT * _WARP_UNIT
    return int(
        min(
            warps_by_registers // warps,
            limits.shared // (record["shared"] + _RESERVED_SHARED),
            limits.warps // warps,
            limits.blocks,
        )
    )


def expected_product(record: Record) -> str | None:
    """The matrix instruction that the kernel must have; None if it multiplies no 16-bit matrices."""
    products = [dot for dot in record["dots"] if dot["type"] in ("bf16", "f16")]
    if not products:
        return None
    if record["num_warps"] >= 4 and any(dot["m"] >= _GROUP_ROWS for dot in products):
        return _GROUP_PRODUCT.get(record["sm"], _WARP_PRODUCT)
    return _WARP_PRODUCT


def failures(record: Record) -> list[str]:
    """What is wrong with one cubin; empty if nothing."""
    limits, instructions = LIMITS[record["sm"]], record["instructions"]
    found = []
    version = tuple(int(part) for part in record["ptx_version"].split("."))
    if version > (toolchain.PTX // 10, toolchain.PTX % 10):
        found.append(f"PTX {record['ptx_version']}: CUDA {toolchain.CUDA} does not read it")
    if record["target"] != toolchain.TARGETS[record["sm"]]:
        found.append(f"target {record['target']}, not {toolchain.TARGETS[record['sm']]}")
    if record["spills"]:
        found.append(f"spills {record['spills']} bytes")
    local = instructions.get("LDL", 0) + instructions.get("STL", 0)
    if local:
        found.append(f"{local} accesses to local memory")
    if record["registers"] > MAX_REGISTERS:
        found.append(f"{record['registers']} registers a thread")
    if record["shared"] > limits.block_shared:
        found.append(f"{record['shared']} bytes of shared memory, a block has {limits.block_shared}")
    elif occupancy(record) < 1:
        found.append("no SM can hold a block of it")
    if record["parameters"] != len(record["declared"]):
        found.append(f"{record['parameters']} parameters, PARAMETERS has {len(record['declared'])}")
    product = expected_product(record)
    if product and not instructions.get(product):
        others = [name for name in instructions if "MMA" in name] or "none"
        found.append(f"no {product} for its matrix products (matrix instructions: {others})")
    return found


def rows_without_image(records: Iterable[Record], tables: Mapping[int, catalogue.TileTable]) -> list[str]:
    """Tile rows that select nothing: no cubin of their architecture has all of the row's constants."""
    found = []
    constants: dict[int, list[dict[str, int]]] = {}
    for record in records:
        constants.setdefault(record["sm"], []).append(record["constants"])
    for sm, table in tables.items():
        if sm not in constants:  # a build of some architectures only
            continue
        for op, rows in table.items():
            for number, row in enumerate(rows):
                wanted = catalogue.row_constants(row).items()
                if not any(wanted <= image.items() for image in constants.get(sm, [])):
                    found.append(f"sm_{sm}: row {number} of {op} selects no kernel")
    return found
