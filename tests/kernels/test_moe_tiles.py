"""The MoE rows of the tile tables: what the plugin relies on when it combines them."""

from __future__ import annotations

import pytest

from mm2c_plugins.kernels import catalogue

MOE = [name for name in catalogue.kernel_names() if name.startswith("moe_")]


@pytest.mark.parametrize("sm", catalogue.SMS)
def test_both_products_cut_the_pairs_alike(sm: int) -> None:
    """moe_down runs over the tiles made for moe_gate_up: for every number of tokens it needs a row of that BM."""
    tiles = catalogue.load_tiles(sm)
    for up in tiles["moe_grouped"]:
        fitting = [
            row
            for row in tiles["moe_down"]
            if row["BM"] == up["BM"] and row["max_tokens"] >= up["max_tokens"]
        ]
        assert fitting, up
    assert [row["max_tokens"] for row in tiles["moe_plan"]][-1] == 64
    assert {row["TP"] for row in tiles["moe_plan"]} == {row["max_tokens"] for row in tiles["moe_plan"]}


@pytest.mark.parametrize("sm", catalogue.SMS)
def test_limits_of_the_kernels(sm: int) -> None:
    tiles = catalogue.load_tiles(sm)
    for op in ("moe_grouped", "moe_down"):
        for row in tiles[op]:
            assert row["BK"] in (64, 128), (
                row
            )  # a scale block's depth is 64 or 128, and so is what a step may span
    for row in tiles["moe_small"]:
        assert 64 % row["BN"] == 0, row  # a program's rows share a scale block
        assert row["BK"] >= 32, row


@pytest.mark.parametrize("sm", catalogue.SMS)
def test_every_image_that_a_row_can_ask_for(sm: int) -> None:
    """Rows with BK 128 fall back to 64 where a width is no multiple of 128; every row serves both weight types;
    grouping exists for every BM; sm_80 reads codes, later ones e4m3."""
    found: dict[str, list[dict[str, object]]] = {name: [] for name in MOE}
    for variant in catalogue.collect(sm, names=MOE):
        found[variant.kernel].append(
            {**variant.table_constants(), **{f"type {k}": v for k, v in variant.types.items()}}
        )

    def has(kernel: str, **wanted: object) -> bool:
        return any(
            all(constants.get(key) == value for key, value in wanted.items()) for constants in found[kernel]
        )

    tiles = catalogue.load_tiles(sm)
    for op, kernel in (("moe_grouped", "moe_gate_up"), ("moe_down", "moe_down")):
        for row in map(catalogue.row_constants, tiles[op]):
            for bk in {64, row["BK"]}:
                code = {"U8": int(sm < 89), "type w": "*u8" if sm < 89 else "*fp8e4nv"}
                assert has(kernel, **{**row, "BK": bk, "SCALED": 1, **code})
                assert has(kernel, **{**row, "BK": bk, "SCALED": 0, "U8": 0, "type w": "*bf16"})
            assert has("moe_offsets", BM=row["BM"])
            for plan in map(catalogue.row_constants, tiles["moe_plan"]):
                for route in (0, 1):
                    assert has("moe_plan", **plan, BM=row["BM"], ROUTE=route)
    for row in map(catalogue.row_constants, tiles["moe_small"]):
        for scaled in (0, 1):
            assert has("moe_small_down", **row, SCALED=scaled)
            assert all(has("moe_small_gate_up", **row, SCALED=scaled, ROUTE=route) for route in (0, 1))
    for row in map(catalogue.row_constants, tiles["moe_permute"]):
        assert has("moe_count", **row)
        assert has("moe_scatter", **row)
