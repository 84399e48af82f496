from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from toy_program import program, write

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.program import Head, read_program


def test_a_program_is_read(tmp_path: Path) -> None:
    found = read_program(write(tmp_path, program()))
    assert (found.rank, found.ranks, found.vocab, found.pages_per_row) == (0, 1, 10, 5)
    assert found.kv.bytes_per_token == 2 * 1 * 1 * 4 * 2
    assert found.weights["embed"].shape == (10, 4)
    assert [node.op for node in found.nodes][:2] == ["Gather", "M2Toy"]
    assert found.constants["two"].data == (2.0,)


def test_a_program_may_have_a_part_of_the_vocabulary(tmp_path: Path) -> None:
    assert read_program(write(tmp_path, program())).head is None
    for part in ({"first": 0, "tokens": 10, "width": 10}, {"first": 6, "tokens": 4, "width": 6}):
        found = read_program(write(tmp_path, changed("head", part)))
        assert (found.head, found.columns) == (Head(**part), part["width"])


@pytest.mark.parametrize(
    ("first", "tokens", "width"), [(0, 0, 5), (0, 6, 5), (6, 5, 5), (10, 1, 1), (0, 11, 11), (0, 0, 0)]
)
def test_a_part_that_is_none_of_the_vocabulary_is_refused(
    tmp_path: Path, first: int, tokens: int, width: int
) -> None:
    part = {"first": first, "tokens": tokens, "width": width}
    with pytest.raises(BundleError, match=f"its logits are of {tokens} tokens from {first} on, of 10"):
        read_program(write(tmp_path, changed("head", part)))


def test_logits_of_every_token_are_not_left_in_parts(tmp_path: Path) -> None:
    raw = program(all_logits=True)
    raw["head"] = {"first": 0, "tokens": 5, "width": 5}
    with pytest.raises(BundleError, match="its logits are of 5 tokens"):
        read_program(write(tmp_path, raw))


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
        ("head", {"first": 0, "tokens": 5}, "no 'width'"),
        ("head", {"first": -1, "tokens": 5, "width": 5}, "-1 is no size"),
        ("head", [0, 5, 5], "list indices"),
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
