"""The picture and the report folder of a plan."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from test_plan_layouts import ASK, FP8, M27

from mm2c.bundle.memory import card_note, find_card, write_memory
from mm2c.config import PAGE, BuildOptions, Mapping
from mm2c.errors import UserError
from mm2c.memory import plan_memory
from mm2c.plan.ask import Ask
from mm2c.plan.choice import Plan, make_plan
from mm2c.plan.gpus import USUAL, find_gpu
from mm2c.plan.page import plan_picture, write_report
from mm2c.plan.picture import COLOURS, MOST, Bar, draw_memory
from mm2c.plan.report import plan_json

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(Ask(M27, FP8, 65536, batch=16), find_gpu("h200"), gpus=8)


def test_bars_are_to_scale(plan: Plan) -> None:
    root = ElementTree.fromstring(plan_picture(plan))
    rects = {title.text: float(rect.get("width", "0")) for rect in root.iter(f"{SVG}rect") for title in rect}
    experts = next(width for text, width in rects.items() if text and text.startswith("experts"))
    room = plan.best.tightest
    assert experts == pytest.approx(772 * room.rank.weights.experts / room.memory, abs=0.01)
    labels = [text.text for text in root.iter(f"{SVG}text")]
    assert [label for label in labels if label and label.startswith("GPU ")] == [f"GPU {n}" for n in range(8)]
    for part in ("experts", "attention", "KV cache", "free", "kernels' workspace", "driver, context, NCCL"):
        assert part in labels


def test_the_same_plan_is_the_same_picture(plan: Plan) -> None:
    again = make_plan(Ask(M27, FP8, 65536, batch=16), find_gpu("h200"), gpus=8)
    assert plan_picture(plan) == plan_picture(again)
    assert "prefers-color-scheme: dark" in plan_picture(plan)


def test_what_does_not_fit_is_framed_and_stays_inside(plan: Plan) -> None:
    text = plan_picture(make_plan(ASK, find_gpu("h100"), tp=2))
    root = ElementTree.fromstring(text)
    assert "too much" in text
    assert not any((node.text or "").split(": ")[-1].startswith("-") for node in root.iter())
    assert all(
        float(rect.get("x", "0")) + float(rect.get("width", "0")) <= 960 for rect in root.iter(f"{SVG}rect")
    )


def test_many_gpus_are_not_all_drawn() -> None:
    bars = [Bar(f"GPU <{n}>", (("experts", 10**9),), 2 * 10**9) for n in range(MOST + 3)]
    text = draw_memory(bars, "a & b", "c")
    assert "and 3 more" in text
    assert "GPU &lt;0&gt;" in text
    ElementTree.fromstring(text)
    assert "experts" in COLOURS


def test_the_report_folder(plan: Plan, tmp_path: Path) -> None:
    files = write_report(tmp_path / "a" / "b", plan, "a <model>")
    assert [path.name for path in files] == ["plan.json", "memory.svg", "memory.html"]
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(plan_json(plan, "a <model>")))
    assert files[1].read_text() == plan_picture(plan)
    assert "a &lt;model&gt;" in files[2].read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path / "file", plan, "m")


def test_the_json_has_the_tokens_in_all_and_of_each_gpu(plan: Plan) -> None:
    found = plan_json(make_plan(ASK, find_gpu("h200"), tp=2, ep=4, dp=4), "m")
    assert [gpu["gpu"] for gpu in found["per_gpu"]] == list(range(8))
    assert {gpu["replica"] for gpu in found["per_gpu"]} == {0, 1}
    one = found["per_gpu"][0]
    assert (
        found["kv_capacity_tokens"]
        == 4 * one["kv_capacity_tokens"]
        == 2 * found["kv_capacity_tokens_per_replica"]
    )
    sizes = [size for part, size in one.items() if part.endswith("_bytes") and part != "memory_bytes"]
    assert sum(sizes) == one["memory_bytes"]
    assert found["kv_bytes_per_token"] == 2 * one["kv_bytes_per_token"] == 253_952


def options(mapping: Mapping) -> BuildOptions:
    return BuildOptions(mapping, "cuda", context=32768, max_rows=8, kv_dtype="bf16")


def test_a_build_writes_table_and_picture(tmp_path: Path) -> None:
    mapping = Mapping(2, 4, 4)
    memory = plan_memory(M27, FP8, mapping, context=32768, rows=8, weight_dtype="cuda", page=PAGE)
    report = write_memory(tmp_path, memory, options(mapping), None)
    assert json.loads((tmp_path / "report" / "memory.json").read_text()) == report
    assert report["gpu"]["replicas"] == 2
    assert report["gpu"]["kv_capacity_tokens"]["h200"] > 0
    assert set(report["gpu"]["kv_capacity_tokens"]) == set(USUAL)
    root = ElementTree.fromstring((tmp_path / "report" / "memory.svg").read_text())
    labels = [text.text for text in root.iter(f"{SVG}text")]
    assert [label for label in labels if label and label.startswith("rank ")] == [
        f"rank {n}" for n in range(4)
    ]


def test_a_build_says_whether_it_fits_the_card() -> None:
    memory = plan_memory(M27, FP8, Mapping(4), context=32768, rows=64, weight_dtype="cuda", page=PAGE)
    asked = BuildOptions(Mapping(4), "cuda", context=32768, max_rows=64, kv_dtype="bf16")
    assert "does not fit 4 × a GPU of 48GiB" in card_note(find_card("48GiB"), memory, asked)
    assert "of 64 rows of 32768 tokens" in card_note(find_card("h100"), memory, asked)
    assert ": all rows of 32768 tokens" in card_note(find_card("b300"), memory, asked)
    with pytest.raises(UserError, match="no GPU is known"):
        find_card("geforce")
