"""Headers of safetensors files: what is read, and what damage is named."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mm2c.checkpoint.shard import read_shard
from mm2c.errors import UserError

ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def shard(path: Path, header: Any, data: bytes = bytes(16)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    arrays = {"one": np.arange(6, dtype=np.float32).reshape(2, 3), "two": np.ones(4, np.float16)}
    save_file(arrays, path, metadata={"format": "pt"})
    tensors, _ = read_shard(path)
    raw = path.read_bytes()
    for name, info in tensors.items():
        assert info.file == "a.safetensors"
        assert raw[info.offset : info.offset + info.nbytes] == arrays[name].tobytes()
    assert (tensors["one"].dtype, tensors["one"].shape) == ("f32", (2, 3))
    assert tensors["two"].dtype == "f16"


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"t": ENTRY}, bytes(15), "truncated"),
        ({"t": ENTRY}, bytes(17), "longer"),
        ({"t": {**ENTRY, "shape": [2, 3]}}, bytes(16), "'t'"),
        ({"t": {**ENTRY, "dtype": "F31"}}, bytes(16), "F31"),
        ({"t": {**ENTRY, "data_offsets": [4, 20]}}, bytes(20), "does not follow"),
        ({"t": ENTRY, "u": ENTRY}, bytes(16), "does not follow"),
        ({"t": {**ENTRY, "shape": [-2, -2]}}, bytes(16), "'t'"),
        ({"t": {"dtype": "F32"}}, bytes(16), "corrupt"),
        ({"t": 3}, bytes(16), "corrupt"),
        ([1, 2], bytes(16), "corrupt"),
        (b"{not json", bytes(16), "corrupt"),
        (b"\xff\xfe", bytes(16), "corrupt"),
        (b'{"t": {}, "t": {}}', bytes(16), "twice"),
    ],
)
def test_damage_is_named(tmp_path: Path, header: Any, data: bytes, says: str) -> None:
    path = shard(tmp_path / "a.safetensors", header, data)
    with pytest.raises(UserError) as caught:
        read_shard(path)
    assert says in caught.value.what
    assert "a.safetensors" in caught.value.what
    assert caught.value.remedy


@pytest.mark.parametrize("data", [b"", b"\x01\x02", (1 << 40).to_bytes(8, "little"), bytes(7)])
def test_no_safetensors_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="truncated or no safetensors file"):
        read_shard(tmp_path / "a.safetensors")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shard b\.safetensors is missing"):
        read_shard(tmp_path / "b.safetensors")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(["F32", "dtype"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["t", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_no_header_escapes_as_another_exception(tmp_path: Path, header: Any) -> None:
    with suppress(UserError):
        read_shard(shard(tmp_path / "a.safetensors", header))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=64))
def test_no_bytes_escape_as_another_exception(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    with suppress(UserError):
        read_shard(tmp_path / "a.safetensors")
