"""Writes the C++ side of a kernel build: kernel_table.cpp (what include/mm2c/kernel_table.h declares) and cubins.S.

    python -m mm2c_plugins.kernels.embed --build plugins/build

Files that would not change are left alone, so that make sees what did. cubins.S has every cubin's digest: it changes
when only their contents do. It names the cubins relative to its own folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm2c_plugins.kernels import catalogue
from mm2c_plugins.kernels.compile import read_records

Record = Mapping[str, Any]
_HEADER = "// Written by plugins/kernels/embed.py."
_NO_IMAGE = "{nullptr, nullptr, 0, nullptr, nullptr, nullptr, 0, 0, nullptr, nullptr, 0}"
_NO_ROW = "{nullptr, 0, 0, 0, nullptr, 0}"


def symbol(number: int) -> str:
    return f"mm2c_cubin_{number}"


def assembly(records: Sequence[Record]) -> str:
    """The cubins as read-only data, each 16-byte aligned between <symbol> and <symbol>_end."""
    lines = [_HEADER, '    .section .rodata.mm2c_cubins, "a", @progbits']
    for number, record in enumerate(records):
        name = symbol(number)
        lines += [
            f"    // sm_{record['sm']} {record['name']} {record['sha256']}",
            "    .balign 16",
            *(f"    {kind} {label}" for label in (name, f"{name}_end") for kind in (".globl", ".hidden")),
            f"{name}:",
            f'    .incbin "../{record["cubin"]}"',
            f"{name}_end:",
            "    .byte 0",
        ]
    lines.append('    .section .note.GNU-stack, "", @progbits')
    return "\n".join(lines) + "\n"


class _Constants:
    """Arrays of constants, equal ones shared."""

    def __init__(self) -> None:
        self._names: dict[tuple[tuple[str, int], ...], str] = {}

    def name(self, values: Mapping[str, int]) -> str:
        return self._names.setdefault(tuple(sorted(values.items())), f"kConstants{len(self._names)}")

    def definitions(self) -> list[str]:
        return [
            f"constexpr Constant {name}[] = {{{', '.join(_constant(*pair) for pair in values)}}};"
            for values, name in self._names.items()
        ]


def _constant(name: str, value: int) -> str:
    return f'{{"{name}", {value}}}'


def table(records: Sequence[Record], tables: Mapping[int, catalogue.TileTable]) -> str:
    """kernel_table.cpp: images in the order of cubins.S, tile rows in the order of the tables."""
    constants = _Constants()
    images = []
    for number, record in enumerate(records):
        values = record["constants"]
        images.append(
            f'{{"{record["kernel"]}", "{record["name"]}", {record["sm"]}, {symbol(number)}, {symbol(number)}_end,'
            f' "{record["entry"]}", {record["num_warps"]}, {record["shared"]}, "{record["types"]}",'
            f" {constants.name(values)}, {len(values)}}}"
        )
    rows = []
    for sm, ops in sorted(tables.items()):
        for op, entries in ops.items():
            for row in entries:
                values = catalogue.row_constants(row)
                rows.append(
                    f'{{"{op}", {sm}, {row["max_tokens"]}, {int(row.get("alternative", 0))},'
                    f" {constants.name(values)}, {len(values)}}}"
                )
    symbols = [f"extern unsigned char const {symbol(n)}[], {symbol(n)}_end[];" for n in range(len(records))]
    return "\n".join(
        [
            _HEADER,
            '#include "mm2c/kernel_table.h"',
            "",
            'extern "C"',
            "{",
            *(f'__attribute__((visibility("hidden"))) {line}' for line in symbols),
            "}",
            "",
            "namespace mm2c",
            "{",
            "",
            "namespace",
            "{",
            "",
            *constants.definitions(),
            "",
            "} // namespace",
            "",
            *_array("KernelImage", "kKernelImages", "kKernelImageCount", images, _NO_IMAGE),
            "",
            *_array("TileRow", "kTileRows", "kTileRowCount", rows, _NO_ROW),
            "",
            "} // namespace mm2c",
            "",
        ]
    )


def _array(kind: str, name: str, count: str, entries: list[str], empty: str) -> list[str]:
    """C++ has no empty arrays: one of nothing stands for it, and the count says 0."""
    body = [f"    {entry}," for entry in entries or [empty]]
    return [f"{kind} const {name}[] = {{", *body, "};", f"int const {count} = {len(entries)};"]


def write_if_changed(path: Path, text: str) -> bool:
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True


def embed(build: Path) -> list[Path]:
    """Writes generated/ from the build's kernels.json and the tile tables; returns what changed."""
    records = read_records(build)
    tables = {sm: catalogue.load_tiles(sm) for sm in catalogue.SMS}
    written = {
        build / "generated" / "kernel_table.cpp": table(records, tables),
        build / "generated" / "cubins.S": assembly(records),
    }
    return [path for path, text in written.items() if write_if_changed(path, text)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mm2c_plugins.kernels.embed", description="Writes the kernel table."
    )
    parser.add_argument("--build", type=Path, required=True, help="folder that compile wrote")
    given = parser.parse_args(arguments)
    try:
        embed(given.build)
    except catalogue.CatalogueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
