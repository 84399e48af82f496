"""What the plugin library is called with, by a library that only writes it down."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.plugin_ops import PluginOps, has_row_stride, open_library
from mm2c_runtime.executors.cuda.program import Node

CPU = torch.device("cpu")


class TensorArg(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    pointer: int


class Prepared:
    def __init__(self, log: list[Any], what: Any) -> None:
        self.log, self.what = log, what
        self.pointed: Any = None

    def point(self, pointers: list[int], workspace: int | None = None) -> None:
        self.pointed = (pointers, workspace)

    def launch(self, stream: int) -> None:
        self.log.append(("launch", self.what, *self.pointed, stream))


class Plugin:
    """Gives y[T, 5] f32 of x[T, K] and, where there is a second input, that input again."""

    def __init__(self, log: list[Any], name: str) -> None:
        self.log, self.name = log, name

    def output_dtypes(self, dtypes: list[str]) -> list[str]:
        return ["f32", *dtypes[1:2]]

    def output_shapes(self, shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        return [(shapes[0][0], 5), *shapes[1:2]]

    def aliases(self) -> dict[int, int]:
        return {1: 1}

    def check(self, descs: list[TensorArg]) -> None:
        self.log.append(("check", [(d.dtype, d.shape) for d in descs]))

    def workspace(self, inputs: list[TensorArg], outputs: list[TensorArg]) -> int:
        return 32 * inputs[0].shape[0] if self.name != "M2Small" else 0

    def attach(self) -> Any:
        self.log.append(("attach", self.name))
        return self

    def prepare(self, inputs: list[TensorArg], outputs: list[TensorArg]) -> Prepared:
        self.log.append(("prepare", self.name))
        return Prepared(self.log, self.name)


class Library:
    abi, version = 1, "toy"

    def __init__(self, path: Any = None) -> None:
        self.log: list[Any] = []

    def create(self, name: str, attributes: dict[str, Any], *, layer: str) -> Plugin:
        self.log.append(("create", name, attributes, layer))
        return Plugin(self.log, name)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("mm2c_plugins.host")
    module.TensorArg, module.Library = TensorArg, Library  # type: ignore[attr-defined]
    module.PluginError = type("PluginError", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mm2c_plugins.host", module)
    return module


def node(op: str, name: str = "n", **attributes: Any) -> Node:
    return Node(name, "mm2c", op, (), (), attributes)


@pytest.mark.usefixtures("host")
def test_a_node_is_attached_once_and_prepared_once_a_shape() -> None:
    library = Library()
    ops = PluginOps(library, CPU)
    x, cache = torch.zeros(3, 8, dtype=torch.bfloat16), torch.zeros(2, 2)
    one, two = node("M2Toy", "one", k=1), node("M2Toy", "two", k=2)
    first = ops.run(one, [x, cache])
    assert first[0].shape == (3, 5)
    assert first[0].dtype == torch.float32
    assert first[1] is cache
    assert [entry[0] for entry in library.log] == ["create", "attach", "check", "prepare", "launch"]
    assert library.log[0] == ("create", "M2Toy", {"k": 1}, "one")
    assert library.log[2][1] == [("bf16", (3, 8)), ("f32", (2, 2)), ("f32", (3, 5)), ("f32", (2, 2))]
    _, _, pointers, workspace, stream = library.log[-1]
    assert pointers == [x.data_ptr(), cache.data_ptr(), first[0].data_ptr(), cache.data_ptr()]
    assert workspace
    assert stream == 0
    library.log.clear()
    ops.run(one, [x, cache])
    ops.run(one, [x[:2], cache])
    ops.run(one, [x, cache])
    ops.run(two, [x, cache])
    said = [entry[0] for entry in library.log]
    assert said == [
        "launch",
        "check",
        "prepare",
        *["launch"] * 2,
        *["create", "attach", "check", "prepare", "launch"],
    ]
    for rows in range(1, 20):
        ops.run(one, [torch.zeros(rows, 8), cache])
    assert len(ops._attached["one"].shaped) == 8
    small = ops.run(node("M2Small"), [x])
    assert len(small) == 1
    assert library.log[-1][3] == 0


@pytest.mark.usefixtures("host")
def test_views_of_wider_rows_go_where_the_node_says_so() -> None:
    library = Library()
    ops = PluginOps(library, CPU)
    q, k = torch.zeros(2, 3, 12).split([8, 4], -1)
    ops.run(node("M2QkSumSquares", "strided", q_stride=12, k_stride=12), [q, k])
    assert library.log[-1][2][:2] == [q.data_ptr(), k.data_ptr()]
    ops.run(node("M2QkSumSquares", "copied"), [q, k])
    assert library.log[-1][2][0] != q.data_ptr()
    with pytest.raises(ValueError, match="rows of input 1 are not 12 apart"):
        ops.run(node("M2QkSumSquares", "strided", q_stride=12, k_stride=12), [q, k.contiguous()])
    other = torch.zeros(3, 12).split([8, 4], -1)[0]
    ops.run(node("M2Other", q_stride=12), [other])  # an op whose inputs are contiguous
    assert library.log[-1][2][0] != other.data_ptr()


def test_row_strides() -> None:
    whole = torch.zeros(2, 3, 12)
    assert has_row_stride(whole[..., :8], 12)
    assert not has_row_stride(whole[..., :8], 8)
    assert has_row_stride(whole[:1, :1, :8], 12)
    assert has_row_stride(whole[:, :1, :8], 36)
    assert not has_row_stride(whole[:, :2, :8], 12)
    assert has_row_stride(torch.zeros(5, 1, 12)[..., :8], 12)
    assert not has_row_stride(torch.zeros(3, 4, 8).transpose(1, 2), 4)


def test_libraries_that_cannot_be_used(host: ModuleType, tmp_path: Path) -> None:
    def refused(message: str, version: str = "toy") -> None:
        with pytest.raises(BundleError, match=message) as caught:
            open_library(tmp_path, "library.so", version)
        assert caught.value.where == str(tmp_path / "library.so")

    refused("is missing")
    (tmp_path / "library.so").write_bytes(b"")
    assert isinstance(open_library(tmp_path, "library.so", "toy"), Library)
    refused("is toy with interface 1, the bundle was built for newer", "newer")

    def broken(path: Any) -> None:
        raise host.PluginError("no ELF file")

    host.Library = broken
    refused("cannot be loaded: no ELF file")
    del host.Library
    refused("host is missing")
