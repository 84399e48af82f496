from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_program import write_weights

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.program import TensorType
from mm2c_runtime.executors.cuda.weights import load_weights, open_weights

CPU = torch.device("cpu")
ODD = torch.arange(3, dtype=torch.float32)  # 12 bytes: what follows is not aligned
TENSORS = {
    "a": torch.randn(4, 8).to(torch.float8_e4m3fn),
    "b": torch.randn(3, 5).to(torch.bfloat16),
    "odd": ODD,
    "after": torch.tensor([1.5, 2.5]),
    "scalar": torch.tensor(7.0),
    "empty": torch.empty(0, 4),
}
TYPES = {
    "a": TensorType("e4m3", (4, 8)),
    "b": TensorType("bf16", (3, 5)),
    "odd": TensorType("f32", (3,)),
    "after": TensorType("f32", (2,)),
    "scalar": TensorType("f32", ()),
    "empty": TensorType("f32", (0, 4)),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_weights(tmp_path / "weights", TENSORS)
    return tmp_path / "weights"


def test_every_tensor_is_there_and_aligned(path: Path) -> None:
    found = load_weights(open_weights(path, TYPES), CPU)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].is_contiguous()
        assert tensor.numel() == 0 or found[name].data_ptr() % 16 == 0
        assert torch.equal(found[name].float(), tensor.float())


def test_what_nobody_expects_stays_away(path: Path) -> None:
    assert list(load_weights(open_weights(path, {"b": TYPES["b"]}), CPU)) == ["b"]
    assert load_weights(open_weights(path, {}), CPU) == {}


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("c", TensorType("f32", (1,)), "lack the tensor c"),
        ("a", TensorType("bf16", (4, 8)), r"the tensor a is e4m3\[4, 8\], the program reads bf16\[4, 8\]"),
        ("b", TensorType("bf16", (5, 3)), r"the tensor b is bf16\[3, 5\], the program reads bf16\[5, 3\]"),
    ],
)
def test_other_tensors_are_refused_by_name(path: Path, name: str, kind: TensorType, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        open_weights(path, {name: kind})
    assert caught.value.where == str(path)


def test_files_that_are_cut_short_or_none(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for size in (0, 5, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BundleError, match="no safetensors file"):
            open_weights(path, TYPES)
    path.write_bytes((8).to_bytes(8, "little") + b'{"a": 1}')
    with pytest.raises(BundleError, match="no safetensors file"):
        open_weights(path, TYPES)
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        open_weights(tmp_path / "gone", TYPES)
    path.write_bytes(whole)
    opened = open_weights(path, TYPES)
    path.write_bytes(whole[:-3])
    with pytest.raises(BundleError, match="cannot be read to their end: 3 bytes are missing"):
        load_weights(opened, CPU)
