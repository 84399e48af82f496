"""`mm2c inspect` and `mm2c verify`: what they tell of a bundle, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mm2c.bundle.collective_facts import collective_facts
from mm2c.bundle.rank_graph_file import load_graph
from mm2c.bundle.reports import read_reports, summary_of
from mm2c.checkpoint import read_config
from mm2c.cli.main import app
from mm2c.config import Mapping
from mm2c.errors import UserError
from mm2c.progress import Quiet
from mm2c.verify.run import fitting
from mm2c_runtime.errors import BundleError
from mm2c_runtime.manifest import FORMAT, Limits


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


@pytest.fixture(scope="module")
def others(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Arguments of `mm2c build` -> bundle of two rows a group."""
    root = tmp_path_factory.mktemp("others")

    def make(*arguments: object) -> Path:
        place = root / "_".join(str(a).strip("-") for a in arguments)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MM2C_CACHE", str(root / "cache"))
            result = mm2c("build", source, *arguments, "--context", 64, "--max-rows", 2, "-o", place)
        assert result.exit_code == 0, result.output
        return place

    return make


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


def test_layers_are_told_apart_from_what_stands_around_them(bundles: tuple[Path, Path]) -> None:
    graph = json.loads(mm2c("inspect", bundles[0], "--json").stdout)["graphs"][0]
    (layer,) = graph["layers"]
    assert (layer["function"], layer["layers"]) == ("DecoderLayer", [0])
    assert layer["ops"]["DistCollective"] == 3
    assert "Identity" not in layer["ops"]
    assert graph["outside"]["ops"]["DistCollective"] == 2
    assert "DecoderLayer" not in graph["ops"] | graph["outside"]["ops"]
    for op, count in graph["ops"].items():
        assert count == layer["ops"].get(op, 0) + graph["outside"]["ops"].get(op, 0)


def test_shards_say_what_each_rank_holds(bundles: tuple[Path, Path]) -> None:
    facts = json.loads(mm2c("inspect", bundles[1], "--json").stdout)
    first, second = facts["shards"]
    assert (first["query_heads"], second["query_heads"]) == ([0, 2], [2, 4])
    assert (first["kv_heads"], second["kv_heads"]) == ([0, 2], [2, 4])
    assert first["experts"] == second["experts"] == [0, 4]
    assert (first["intermediate"], second["intermediate"]) == ([0, 128], [128, 256])
    assert (first["vocabulary"], second["vocabulary"]) == ([0, 150], [150, 300])
    for shard, graph in zip(facts["shards"], facts["graphs"], strict=True):
        assert shard["bytes"] == sum(shard["bytes_by_part"].values()) == graph["weight_bytes"]
        assert "other" not in shard["bytes_by_part"]


def test_collectives_are_counted_and_compared_with_the_plan(bundles: tuple[Path, Path]) -> None:
    for bundle in bundles:
        facts = json.loads(mm2c("inspect", bundle, "--json").stdout)["collectives"]
        assert facts["matches"]
        assert facts["planned"] == facts["in_graph"] == len(facts["messages"]) == 5
        assert facts["per_layer"] == {"all_reduce": 3}
        assert facts["outside_layers"] == {"all_reduce": 1, "all_gather": 1}
        sums = next(m for m in facts["messages"] if m["name"].endswith("qk_sums.all_reduce"))
        assert sums["groups"] == [[0, 1]]
        assert sums["bytes_in"] == {"decode": 2 * 2 * 4, "prefill": 4 * 2 * 4}
        for step in ("decode", "prefill"):
            assert facts["per_step"][step]["bytes_in"] == sum(m["bytes_in"][step] for m in facts["messages"])


def test_a_missing_message_is_named(bundles: tuple[Path, Path]) -> None:
    import onnx

    graphs = [load_graph(bundles[1], rank) for rank in range(2)]
    for node in graphs[1].model.graph.node:
        if node.op_type == "DistCollective" and node.name.startswith("lm_head"):
            node.CopyFrom(onnx.helper.make_node("Identity", node.input, node.output, name=node.name))
    config = read_config(bundles[1]).model
    facts = collective_facts(
        graphs, config, Mapping(2), max_rows=2, prefill_chunk=4, all_logits=False, itemsize=4
    )
    assert not facts["matches"]
    assert facts["missing"] == ["rank 1: lm_head.all_gather over 2"]
    assert facts["unexpected"] == []


def test_reports_are_shown(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    facts = json.loads(mm2c("inspect", bundles[1], "--json").stdout)
    assert len(facts["reports"]["memory"]["gpu"]["ranks"]) == 2
    assert facts["reports"]["proofs"]
    shown = mm2c("inspect", bundles[1]).stdout
    assert "proofs    weights.safetensors: ranks 2" in shown
    assert "memory of a GPU as planned" in shown
    report = tmp_path / "report"
    report.mkdir()
    assert read_reports(tmp_path) == {}
    (report / "verify.json").write_text('{"summary": "all of [it]"}')
    assert read_reports(tmp_path) == {"verify": {"summary": "all of [it]"}}
    (report / "verify.json").write_text("{")
    with pytest.raises(BundleError, match=r"verify\.json cannot be read"):
        read_reports(tmp_path)


def test_a_report_in_one_line() -> None:
    assert summary_of({"summary": "fine", "n": 1}) == "fine"
    assert (
        summary_of({"tensors": 20, "ok": True, "parts": [1], "e": 0.123456}) == "tensors 20, ok yes, e 0.1235"
    )
    assert summary_of({"block": [1], "total": {"relative_rms": 0.5}}) == "relative rms 0.5"
    assert summary_of({"a.bin": {"n": 1}, "b": {"m": "x"}, "c": {}}) == "a.bin: n 1; b: m x"
    passed = {"passed": True, "relative": 3e-7}
    assert summary_of({"kind": "streamed", "results": [passed, passed]}) == (
        "kind streamed, 2 comparisons, all passed, at most 3e-07 off in parts of the reference"
    )
    assert summary_of({"results": [passed, {"passed": False}]}).startswith("2 comparisons, 1 FAILED")
    assert summary_of([1, 2]) == "2 entries"
    assert summary_of({}) == "0 entries"


def test_attention_dp_and_replicas(others: Callable[..., Path]) -> None:
    bundle = others("--tp", 1, "--ep", 2, "--dp", 4, "--config-only")
    facts = json.loads(mm2c("inspect", bundle, "--json").stdout)
    wanted = {"attention_dp": 2, "ranks": 2, "replicas": 2, "gpus": 4}
    assert {name: facts["mapping"][name] for name in wanted} == wanted
    assert [shard["attention_group"] for shard in facts["shards"]] == [0, 1]
    assert [shard["experts"] for shard in facts["shards"]] == [[0, 2], [2, 4]]
    assert [shard["query_heads"] for shard in facts["shards"]] == [[0, 4], [0, 4]]
    assert facts["kv_bytes_per_token"] == 2 * 4 * 128 * 4
    assert facts["collectives"]["matches"]
    assert facts["collectives"]["per_layer"] == {"all_gather": 1, "reduce_scatter": 1}
    shown = mm2c("inspect", bundle).stdout
    assert "tp 1, ep 2, dp 4: 4 GPUs, 2 replicas of 2 ranks; attention-DP: 2 groups of 1 rank each" in shown
    assert "2 rows of each attention group" in shown


def test_a_graph_of_the_cuda_engine(others: Callable[..., Path]) -> None:
    bundle = others("--tp", 2, "--engine", "cuda", "--config-only")
    facts = json.loads(mm2c("inspect", bundle, "--json").stdout)
    assert facts["engine"] == "cuda"
    assert facts["graphs"][0]["ops"]["M2PagedAttention"] == 1
    assert facts["collectives"]["matches"]
    assert facts["kv_bytes_per_token"] == 2 * 4 * 128 * 2
    assert facts["shards"][1]["query_heads"] == [2, 4]


def test_a_bundle_whose_weights_stay_in_the_checkpoint(others: Callable[..., Path]) -> None:
    bundle = others("--tp", 2, "--weights", "checkpoint")
    facts = json.loads(mm2c("inspect", bundle, "--json").stdout)
    assert facts["weights"] == "checkpoint"
    assert not list(bundle.glob("rank*/*.safetensors"))
    portable = [rank for rank in facts["ranks"] if rank["lowering"] == "portable"]
    assert all(rank["weight_bytes"] > 300 * 128 * 2 for rank in portable)
    assert "read from the checkpoint at every start" in mm2c("inspect", bundle).stdout


def test_a_layer_is_drawn(
    bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = mm2c("inspect", bundles[0], "--picture")
    assert result.exit_code == 0, result.output
    assert ET.parse(tmp_path / "whole-rank0.svg").getroot().tag.endswith("svg")
    assert (bundles[0] / "report" / "layer.svg").read_text() == (tmp_path / "whole-rank0.svg").read_text()
    result = mm2c("inspect", bundles[1], "--picture", "own.svg", "--rank", 1, "--json")
    assert json.loads(result.stdout)["picture"] == "own.svg"
    assert "rank 1 of 2" in (tmp_path / "own.svg").read_text()
    assert (
        mm2c("inspect", bundles[1], "--picture", "-", "--rank", 1).stdout
        == (tmp_path / "own.svg").read_text()
    )
    refused(mm2c("inspect", bundles[0], "--picture", "--rank", 2), "the bundle has 2 ranks", "0 to 1")
    refused(mm2c("inspect", bundles[0], "--picture", tmp_path), "cannot be written", str(tmp_path))
    refused(mm2c("inspect", bundles[0], "own.svg"), "add --picture")


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
        ("manifest.json", '{"format": 1}', ("format 1", f"reads format {FORMAT}", "build it again")),
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
    manifest["checkpoint"] |= dict.fromkeys(("source", "folder"), str(tmp_path / "gone"))
    del manifest["seal"]  # edited by hand, and not to be found out here
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused(mm2c("verify", folder), "gone", "--against", "MM2C_CHECKPOINT_FOLDER=FOLDER")
