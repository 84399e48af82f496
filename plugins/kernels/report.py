"""What a build of the kernels came to: report.md for people, report.json for programs.

    python -m mm2c_plugins.kernels.report plugins/build

Missed gates are said and fail tests/kernels/test_compile_gates.py, not the build.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm2c_plugins.kernels import catalogue, gates
from mm2c_plugins.kernels.compile import read_records
from mm2c_plugins.kernels.embed import write_if_changed

Record = Mapping[str, Any]
_COLUMNS = ("variant", "warps", "registers", "shared", "blocks/SM", "warps/SM", "instructions", "bytes", "s")


def summary(records: Sequence[Record], tables: Mapping[int, catalogue.TileTable]) -> dict[str, Any]:
    """Counts, sizes and missed gates of a build; debug builds are not gated."""
    by_sm = {sm: [record for record in records if record["sm"] == sm] for sm in catalogue.SMS}
    missed = [
        f"sm_{record['sm']} {record['name']}: {fault}"
        for record in records
        if not record["debug"]
        for fault in gates.failures(record)
    ]
    return {
        "kernels": len({record["kernel"] for record in records}),
        "variants": len(records),
        "bytes": sum(record["bytes"] for record in records),
        "compile_seconds": round(sum(record["seconds"] for record in records), 1),
        "variants_by_sm": {f"sm_{sm}": len(found) for sm, found in by_sm.items()},
        "bytes_by_sm": {f"sm_{sm}": sum(record["bytes"] for record in found) for sm, found in by_sm.items()},
        "missed_gates": missed + gates.rows_without_image(records, tables),
    }


def markdown(totals: Mapping[str, Any], records: Sequence[Record]) -> str:
    lines = [
        "# Compiled kernels",
        "",
        f"{totals['kernels']} kernels in {totals['variants']} variants, {totals['bytes'] / 2**20:.1f} MiB;"
        f" {totals['compile_seconds']:.0f} s of compilation, as each process saw the clock.",
        "",
        "Missed gates: " + ("none." if not totals["missed_gates"] else ""),
        *(f"- {line}" for line in totals["missed_gates"]),
    ]
    for sm in catalogue.SMS:
        found = [record for record in records if record["sm"] == sm]
        if found:
            lines += ["", f"## sm_{sm}", "", _row(_COLUMNS), _row(["---"] * len(_COLUMNS))]
            lines += [_row(_cells(record)) for record in found]
    return "\n".join(lines) + "\n"


def _cells(record: Record) -> list[str]:
    blocks = gates.occupancy(record)
    instructions = " ".join(f"{name} {count}" for name, count in record["instructions"].items())
    return [
        record["name"],
        str(record["num_warps"]),
        str(record["registers"]),
        str(record["shared"]),
        str(blocks),
        str(blocks * record["num_warps"]),
        instructions,
        str(record["bytes"]),
        f"{record['seconds']:.1f}",
    ]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write(build: Path) -> dict[str, Any]:
    """Writes report.json and report.md into ``build`` and returns the totals."""
    records = read_records(build)
    totals = summary(records, {sm: catalogue.load_tiles(sm) for sm in catalogue.SMS})
    kernels = [{**record, "blocks_per_sm": gates.occupancy(record)} for record in records]
    write_if_changed(
        build / "report.json", json.dumps({**totals, "variants_built": kernels}, indent=1) + "\n"
    )
    write_if_changed(build / "report.md", markdown(totals, records))
    return totals


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        sys.exit("usage: python -m mm2c_plugins.kernels.report BUILD")
    totals = write(Path(arguments[0]))
    for line in totals["missed_gates"]:
        print(f"gate missed: {line}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
