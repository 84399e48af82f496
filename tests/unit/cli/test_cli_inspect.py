"""`mm2c inspect` and `mm2c verify`: what they tell of a bundle, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mm2c.cli.main import app
from mm2c.errors import UserError
from mm2c.progress import Quiet
from mm2c.verify.run import fitting
from mm2c_runtime.manifest import Limits


def mm2c(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def source(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(layers=1, intermediate=256, experts=4, vocab=300, seed=3)


@pytest.fixture(scope="module")
def bundles(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(bundle of two ranks that hold nine tokens a row, the same from config.json alone)."""
    root = tmp_path_factory.mktemp("inspect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MM2C_CACHE", str(root / "cache"))
        limits = ("--tp", 2, "--context", 9, "--max-rows", 2, "--prefill-chunk", 4)
        for name, rest in (("whole", (source,)), ("graphs", (source / "config.json", "--config-only"))):
            result = mm2c("build", *rest, *limits, "-o", root / name)
            assert result.exit_code == 0, result.output
        yield root / "whole", root / "graphs"


def refused(result: Result, *words: str) -> None:
    """A message with a remedy on stderr, nothing on stdout, exit status 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "\nerror: " in f"\n{result.stderr}"
    for word in ("remedy:", *words):
        assert word in result.stderr


def test_a_bundle_of_graphs_alone_is_described(bundles: tuple[Path, Path]) -> None:
    facts = json.loads(mm2c("inspect", bundles[1], "--json").stdout)
    assert [graph["rank"] for graph in facts["graphs"]] == [0, 1]
    for graph in facts["graphs"]:
        assert graph["ops"]["M2Attention"] == 1
        assert graph["ops"]["DistCollective"] == 5  # embedding, three of the layer, head
        assert graph["nodes"] == sum(graph["ops"].values())
        assert [value["name"] for value in graph["inputs"]] == [
            "input_ids", "past_len", "new_len", "k_cache.0", "v_cache.0",
        ]  # fmt: skip
        assert graph["inputs"][3]["shape"] == ["batch", 2, "kv_len", 128]
        assert graph["outputs"][0] == {"name": "logits", "dtype": "float", "shape": ["batch", 300]}
        assert graph["weight_bytes"] > 300 * 128 * 2  # bf16 embedding and head, halved, and the rest
        assert graph["file_bytes"] == (bundles[1] / graph["file"]).stat().st_size
    assert facts["ranks"] == []
    assert facts["kv_bytes_per_token"] == 2 * 4 * 128 * 4


def test_it_is_shown_too_and_no_column_is_cut(bundles: tuple[Path, Path]) -> None:
    shown = mm2c("inspect", bundles[1]).stdout
    for word in ("config.json alone", "M2Attention", "k_cache.0", "input_ids int64[batch, seq]", "weights"):
        assert word in shown
    assert "programs" not in shown
    shown = mm2c("inspect", bundles[0]).stdout
    for word in ("all-reduces", "all-gathers", "KV heads", "portable"):
        assert word in shown
    assert "…  " not in shown


def test_long_paths_stay_whole_in_a_pipe(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / ("very-long-name-" * 9) / "[bold]"
    shutil.copytree(bundles[1], folder)
    assert str(folder) in mm2c("inspect", folder).stdout


@pytest.mark.parametrize("verb", ["inspect", "verify"])
@pytest.mark.parametrize("json_", [(), ("--json",)])
def test_what_is_no_bundle_is_refused(tmp_path: Path, verb: str, json_: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name in ("missing", "file", "folder"):
        refused(mm2c(verb, tmp_path / name, *json_), "no bundle here", str(tmp_path / name))


@pytest.mark.parametrize("verb", ["inspect", "verify"])
@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tokenizer.json", "{}", ("tokenizer.json", "bytes, the manifest says")),
        ("manifest.json", "{", ("not valid JSON",)),
        ("manifest.json", '{"format": 1}', ("format 1", "reads format 2", "build it again")),
        ("rank0/model.onnx", None, ("model.onnx was altered", "--force")),
        ("config.json", "", ("config.json",)),
    ],
)
def test_an_altered_bundle_is_refused(
    bundles: tuple[Path, Path], tmp_path: Path, verb: str, name: str, text: str | None, words: tuple[str, ...]
) -> None:
    folder = Path(shutil.copytree(bundles[0], tmp_path / "bundle"))
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if text is None else text.encode())
    refused(mm2c(verb, folder), *words)


def test_a_damaged_graph_is_named_without_checksums(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundles[1], tmp_path / "bundle"))
    path = folder / "rank1" / "model.onnx"
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(b"\xff" * size)
    refused(mm2c("inspect", folder, "--no-checksums"), "model.onnx is no ONNX graph", "rank1")


def test_verify_shortens_what_the_context_cannot_hold(bundles: tuple[Path, Path]) -> None:
    result = mm2c("verify", bundles[0], "--lowering", "portable", "--json")
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.stdout)
    assert outcome["steps"] == 8
    assert [case["positions"] for case in outcome["results"]] == [2, 2, 16]
    assert "a row of this bundle holds 9 tokens: 8 decode steps are compared" in result.stderr
    assert "at most 2 rows" in result.stderr


def test_verify_needs_room_for_one_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no room for a decode step"):
        fitting(Limits(context=1, max_rows=1, prefill_chunk=1), tmp_path, 4, 1, Quiet())
    assert fitting(Limits(context=2, max_rows=1, prefill_chunk=1), tmp_path, 4, 3, Quiet()) == (1, 1)


def test_verify_against_another_configuration_says_what_differs(
    bundles: tuple[Path, Path], random_checkpoint: Callable[..., Path]
) -> None:
    other = random_checkpoint(layers=2, intermediate=256, experts=4, vocab=300, seed=3)
    refused(
        mm2c("verify", bundles[0], "--against", other),
        "another checkpoint",
        "layers 1 there, 2 here",
        str(other),
    )


def test_verify_against_other_weights_names_a_tensor(
    bundles: tuple[Path, Path], random_checkpoint: Callable[..., Path]
) -> None:
    other = random_checkpoint(layers=1, intermediate=256, experts=4, vocab=300, seed=4)
    refused(
        mm2c("verify", bundles[0], "--against", other),
        "another checkpoint: the weights of model.",
        "--against",
    )


def test_verify_refuses_what_has_no_weights(bundles: tuple[Path, Path]) -> None:
    refused(mm2c("verify", bundles[1]), "config.json alone", "without --config-only")
    refused(mm2c("verify", bundles[0], "--lowering", "slow"), "no lowering 'slow'", "all, fast, portable")


def test_verify_without_its_checkpoint_asks_for_it(
    bundles: tuple[Path, Path], source: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundles[0], tmp_path / "bundle", copy_function=os.link))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["checkpoint"]["source"] = str(tmp_path / "gone")
    del manifest["seal"]  # edited by hand, and not to be found out here
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused(mm2c("verify", folder), "gone", "--against")
