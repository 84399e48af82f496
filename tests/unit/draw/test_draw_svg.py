"""SVG text is well formed whatever is written into it; sizes follow the ops' rules."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm2c.draw import svg
from mm2c.draw.shapes import Typed, infer

ANYTHING = st.text() | st.sampled_from(["<a>&\"'", "\x00\x08", "]]>", "\ud800", "￿"])


@given(ANYTHING, ANYTHING)
def test_any_text_is_well_formed(text: str, attribute: str) -> None:
    markup = svg.element("g", svg.label(text, 1, 2, "x"), id=attribute)
    tree = ET.fromstring(markup.encode("utf-8", "strict"))
    (label,) = tree
    kept = (label.text or "").replace("\r", "\n")
    assert len(kept) == len(text.replace("\r\n", "\n"))
    if text.isprintable() and text.isascii():
        assert kept == text


def test_numbers_are_short() -> None:
    assert [svg.number(v) for v in (0, -0.01, 1.0, 1.25, -3.04, 100)] == ["0", "0", "1", "1.2", "-3", "100"]


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "expected"),
    [
        ("M2Fp8Linear", ["bf16 B S 64", "e4m3 32 64", "f32 1 1"], {}, ["bf16 [B, S, 32]"]),
        ("MatMul", ["f32 B·S 64", "f32 64 8"], {}, ["f32 [B·S, 8]"]),
        ("M2RouterLinear", ["bf16 B·S 64", "bf16 8 64"], {}, ["f32 [B·S, 8]"]),
        ("M2QkSumSquares", ["bf16 B S 32", "bf16 B S 16"], {}, ["f32 [B, S, 2]"]),
        ("M2AddRmsNorm", ["bf16 B S 64", "bf16 B S 64"], {}, ["bf16 [B, S, 64]"] * 2),
        ("M2MoeRouting", ["f32 B·S 8", "f32 8"], {"top_k": 2}, ["f32 [B·S, 2]", "i32 [B·S, 2]"]),
        ("GatherND", ["bf16 B S 64"], {}, ["bf16 [B, 64]"]),
        ("Pad", ["bf16 B·S 64"], {}, ["bf16 [P, 64]"]),
        ("Slice", ["bf16 P 64"], {}, ["bf16 [B·S, 64]"]),
        ("Transpose", ["bf16 8 64"], {"perm": [1, 0]}, ["bf16 [64, 8]"]),
        ("NewOp", ["bf16 8 64"], {}, ["bf16"]),
        ("NewOp", [], {}, [""]),
    ],
)
def test_sizes(op: str, inputs: list[str], attributes: dict[str, object], expected: list[str]) -> None:
    assert [str(value) for value in infer(op, [typed(text) for text in inputs], attributes, {})] == expected


@pytest.mark.parametrize(
    ("kind", "axis", "given_", "expected"),
    [
        ("all_reduce", -1, "f32 B S 2", "f32 [B, S, 2]"),
        ("all_gather", 0, "f32 P 64", "f32 [4·P, 64]"),
        ("all_gather", -1, "f32 B 25", "f32 [B, 100]"),
        ("reduce_scatter", 0, "f32 4·P 64", "f32 [P, 64]"),
        ("reduce_scatter", 0, "f32 100 64", "f32 [25, 64]"),
        ("reduce_scatter", 0, "f32 P 64", "f32 [P/4, 64]"),
    ],
)
def test_sizes_behind_collectives(kind: str, axis: int, given_: str, expected: str) -> None:
    attributes = {"collective_operation": kind, "axis": axis, "group_size": 4}
    assert [str(v) for v in infer("DistCollective", [typed(given_)], attributes, {})] == [expected]


def test_reshape_and_split_read_constants() -> None:
    rows = typed("bf16 B S 64")
    assert str(infer("Reshape", [rows], {}, {1: [-1, 64]})[0]) == "bf16 [B·S, 64]"
    assert str(infer("Reshape", [typed("bf16 B·S 64")], {}, {})[0]) == "bf16 [B, S, 64]"
    widths = infer("Split", [rows], {}, {1: [32, 16, 16]})
    assert [str(v) for v in widths] == ["bf16 [B, S, 32]", "bf16 [B, S, 16]", "bf16 [B, S, 16]"]


def typed(text: str) -> Typed:
    dtype, *sizes = text.split()
    return Typed(dtype, tuple(int(size) if size.isdigit() else size for size in sizes))
