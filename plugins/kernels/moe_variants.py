"""From tile rows to the variants of the MoE kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mm2c_plugins.kernels.catalogue import Variant, row_constants

Rows = Sequence[Mapping[str, Any]]
NO_TILE = ("EP", "PDL", "U8", "SCALED")  # constants that do not stand in a variant's name as they are


def group_heights(tiles: Mapping[str, Rows]) -> list[int]:
    """Every BM that some row of the grouped products uses: the planning kernels are built for each."""
    return sorted({int(row["BM"]) for op in ("moe_grouped", "moe_down") for row in tiles.get(op, [])})


def plain_variants(
    kernel: str, rows: Rows, fixed: Sequence[Mapping[str, int | bool]], multiples: tuple[str, ...] = ()
) -> list[Variant]:
    """One variant for every row (its tile constants) and every set of ``fixed`` constants, without repeats."""
    return _unique(
        _variant(kernel, "", {**constants, **row_constants(row)}, {}, multiples)
        for row in rows
        for constants in fixed
    )


def weight_variants(
    kernel: str,
    sm: int,
    rows: Rows,
    multiples: tuple[str, ...],
    fixed: Sequence[Mapping[str, int | bool]] = ({},),
    halve_bk: bool = False,
) -> list[Variant]:
    """For every row and set of ``fixed`` constants a variant for e4m3 weights (u8 on sm_80) and one for bf16 weights.

    ``halve_bk``: a row with BK above 64 gets a twin with BK 64, for widths or scale blocks that its BK does not divide.
    """
    found = []
    for row in rows:
        tile = row_constants(row)
        tiles = [tile, {**tile, "BK": 64}] if halve_bk else [tile]
        for constants in ({**one, **more} for one in tiles for more in fixed):
            u8 = sm < 89
            shared = {**constants, "PDL": sm >= 90}
            fp8 = {**shared, "SCALED": True, "U8": u8}
            found.append(_variant(kernel, ".fp8", fp8, {"w": "*u8" if u8 else "*fp8e4nv"}, multiples))
            bf16 = {**shared, "SCALED": False, "U8": False}
            found.append(_variant(kernel, ".bf16", bf16, {"w": "*bf16"}, multiples))
    return _unique(found)


def _variant(
    kernel: str,
    kind: str,
    constants: Mapping[str, int | bool],
    types: Mapping[str, str],
    multiples: tuple[str, ...],
) -> Variant:
    rest = dict(constants)
    warps, stages = int(rest.pop("num_warps", 4)), int(rest.pop("num_stages", 1))
    marks = [f"{key.lower()}{int(value)}" for key, value in sorted(rest.items()) if key not in NO_TILE]
    name = ".".join([kernel + kind, *marks, f"w{warps}", f"s{stages}"])
    return Variant(kernel, name, rest, types, warps, stages, multiples)


def _unique(found: Iterable[Variant]) -> list[Variant]:
    return list({variant.name: variant for variant in found}.values())
