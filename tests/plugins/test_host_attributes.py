"""Creating plugins: attributes with their types, in both phases, and what is refused."""

from __future__ import annotations

import re
import struct
from typing import Any

import pytest
from plugin_cases import CASES

from mm2c_plugins.host import Field, Library, PluginError


@pytest.mark.parametrize("phase", ["build", "runtime"])
@pytest.mark.parametrize("name", CASES)
def test_create(library: Library, name: str, phase: str) -> None:
    plugin = library.create(name, CASES[name].attributes, phase=phase)
    assert plugin.identity == ("mm2c", name, "1")
    assert plugin.clone().identity == plugin.identity


@pytest.mark.parametrize("name", CASES)
def test_serialized_and_made_again(library: Library, name: str) -> None:
    case = CASES[name]
    plugin = library.create(name, case.attributes)
    kept = plugin.serialize()
    for attribute, value in case.attributes.items():
        assert kept[attribute].value == pytest.approx(value, rel=1e-6)
    again = library.restore(name, kept)
    assert again.serialize() == kept
    assert again.clone().serialize() == kept
    assert again.outputs(case.inputs(3)) == case.outputs(3)


def test_an_unknown_plugin_is_named(library: Library) -> None:
    with pytest.raises(PluginError, match=r"has no plugin 'M2Nothing'; it has .*M2Fp8Linear"):
        library.create("M2Nothing", {})


@pytest.mark.parametrize(
    ("name", "changed", "complaint"),
    [
        (
            "M2Fp8Linear",
            {"block": 128},
            r"no attribute 'block'; its attributes are block_n \(int32\), block_k",
        ),
        ("M2Fp8Linear", {"block_n": 1.5}, "takes int32 for attribute 'block_n', not 1.5"),
        ("M2Fp8Linear", {"block_n": 2**31}, "takes int32 for attribute 'block_n', not 2147483648"),
        ("M2Fp8Linear", {"block_n": "128"}, "takes int32 for attribute 'block_n', not '128'"),
        ("M2Fp8Linear", {"block_n": [128, 128]}, "block_n"),
        ("M2Fp8Linear", {"block_n": 48}, "block_n"),
        ("M2Fp8Linear", {"block_k": 0}, "block_k"),
        ("M2AddRmsNorm", {"eps": "small"}, "takes float32 for attribute 'eps', not 'small'"),
        ("M2AddRmsNorm", {"eps": -1.0}, "eps"),
        ("M2AddRmsNorm", {"eps": float("nan")}, "eps"),
        ("M2MoeRouting", {"top_k": 17}, "top_k"),
        ("M2MoeRouting", {"top_k": 0}, "top_k"),
        ("M2MoeFp8", {"top_k": 17}, "top_k"),
        ("M2MoeFp8", {"first_expert": -1}, "first_expert"),
        ("M2PagedAttention", {"head_dim": 64}, "head_dim"),
        ("M2PagedAttention", {"rotary_dim": 128}, "rotary_dim"),
        ("M2PagedAttention", {"heads": 7}, "heads"),
        ("M2PagedAttention", {"kv_heads": 0}, "kv_heads"),
        ("M2PagedAttention", {"q_stride": -16}, "q_stride"),
        ("M2PagedAttention", {"q_stride": 512}, "q_stride must be .* at least the width 1024, got 512"),
        ("M2PagedAttention", {"k_stride": 264}, "k_stride must be a multiple of 16"),
        ("M2PagedAttention", {"v_stride": 128}, "v_stride"),
    ],
)
def test_wrong_attributes(library: Library, name: str, changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PluginError, match=complaint) as raised:
        library.create(name, {**CASES[name].attributes, **changed}).attach()
    assert str(raised.value).startswith(f"{name}: ")
    assert not re.match(rf"{name}: {name}", str(raised.value))


@pytest.mark.parametrize(
    "name", [name for name in CASES if CASES[name].attributes and name != "M2QkSumSquares"]
)
def test_missing_attributes(library: Library, name: str) -> None:
    """All but strides and switches must be given."""
    for attribute in CASES[name].attributes:
        if attribute.endswith("_stride") or name == "M2Sample":
            continue
        rest = {key: value for key, value in CASES[name].attributes.items() if key != attribute}
        with pytest.raises(PluginError, match=rf"{name}: .*{attribute}"):
            library.create(name, rest)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ([("top_k", "int64", 1, struct.pack("=q", 17))], "top_k must be from 1 to 16, got 17"),
        ([("top_k", "int64", 1, struct.pack("=q", 2**32 + 4))], "top_k must be from 1 to 16"),
        ([("top_k", "int64", 1, struct.pack("=q", -(2**63)))], "top_k must be from 1 to 16"),
        ([("top_k", "int16", 1, struct.pack("=h", 4))], "top_k must be int32 or int64"),
        ([("top_k", "float32", 1, struct.pack("=f", 4))], "top_k"),
        ([("top_k", "int32", 2, struct.pack("=2i", 4, 4))], "top_k"),
        ([("top_k", "int32", 1, None)], "top_k"),
        ([("top_k", "int32", 1, struct.pack("=i", 4))] * 2, "top_k"),
        ([("topk", "int32", 1, struct.pack("=i", 4))], "topk"),
        ([], "top_k"),
    ],
)
def test_the_library_itself_refuses_wrong_fields(
    library: Library, fields: list[tuple[str, str, int, bytes | None]], complaint: str
) -> None:
    """What a parser or a plan of another version might hand to the creator."""
    with pytest.raises(PluginError, match=f"M2MoeRouting: .*{complaint}"):
        library.create_with("M2MoeRouting", [Field(*field) for field in fields])


@pytest.mark.parametrize("name", CASES)
def test_whole_numbers_come_as_int32_or_int64(library: Library, name: str) -> None:
    """A plan keeps the same of both."""
    attributes = CASES[name].attributes
    wide = [
        Field(key, "int64", 1, struct.pack("=q", value))
        if isinstance(value, int)
        else Field(key, "float32", 1, struct.pack("=f", value))
        for key, value in attributes.items()
    ]
    assert library.create_with(name, wide).serialize() == library.create(name, attributes).serialize()


def test_messages_name_the_layer(library: Library) -> None:
    with pytest.raises(PluginError, match=r"^layers\.3\.moe \(M2MoeRouting\): .*top_k"):
        library.create("M2MoeRouting", {"top_k": 99}, layer="layers.3.moe")
