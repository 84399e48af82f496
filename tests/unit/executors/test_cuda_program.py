from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from toy_program import program, write

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.program import read_program


def test_a_program_is_read(tmp_path: Path) -> None:
    found = read_program(write(tmp_path, program()))
    assert (found.rank, found.ranks, found.vocab, found.pages_per_row) == (0, 1, 10, 5)
    assert found.kv.bytes_per_token == 2 * 1 * 1 * 4 * 2
    assert found.weights["embed"].shape == (10, 4)
    assert [node.op for node in found.nodes][:2] == ["Gather", "M2Toy"]
    assert found.constants["two"].data == (2.0,)


def changed(path: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(program())
    *outer, last = path.split(".")
    place: Any = raw
    for key in outer:
        place = place[int(key) if isinstance(place, list) else key]
    if value is None:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", 3, "has format 3, this runtime reads 2"),
        ("abi", 7, "has abi 7, this runtime reads 1"),
        ("abi", None, "has abi None"),
        ("kv", None, "no 'kv'"),
        ("kv.dtype", "f32", "'f32' is not one of 'bf16', 'fp8'"),
        ("kv.page", 0, "a size is 0"),
        ("vocab", "many", "'many' is no size"),
        ("rank", 1, "rank 1 of 1"),
        ("logits", "some", "'some' is not one of"),
        ("inputs", ["input_ids"], "its inputs are not"),
        ("outputs", ["logits"], "its outputs are not"),
        ("weights.embed.dtype", "f64", "'f64' is not one of"),
        ("constants.two.data", [1, 2], "constant two has 2 elements for []"),
        ("constants.embed", {"dtype": "i64", "shape": [], "data": [1]}, "embed is there twice"),
        ("nodes.1.inputs.0", "nothing", "node attend reads nothing, which nothing before it makes"),
        ("nodes.1.outputs.0", "embedded", "node attend makes embedded, which is there already"),
        ("nodes.1.name", "embedding", "two nodes are called embedding"),
        ("nodes.1.domain", "com.microsoft", "'com.microsoft' is not one of"),
        ("nodes.7.outputs.0", "other", "nothing makes its output logits"),
        ("nodes", 3, "not iterable"),
    ],
)
def test_what_is_no_program_is_refused(tmp_path: Path, path: str, value: Any, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        read_program(write(tmp_path, changed(path, value)))
    assert message in caught.value.what
    assert caught.value.where == str(tmp_path / "cuda.json")
    assert caught.value.remedy


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        read_program(tmp_path / "cuda.json")
    for text in ("{", "[]", "\xff"):
        (tmp_path / "cuda.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(BundleError, match=r"not JSON|not a JSON"):
            read_program(tmp_path / "cuda.json")


def test_the_toy_is_json(tmp_path: Path) -> None:
    assert json.loads(write(tmp_path, program()).read_text())["format"] == 2
