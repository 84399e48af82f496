"""`mm2c plan` through the command line: tables, JSON, the report folder and every refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mm2c.cli import console, plan_guide, plan_tables
from mm2c.cli.main import app


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM2C_CACHE", str(tmp_path_factory.getbasetemp() / "plan-cache"))


def ask(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def asked(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*arguments: object) -> str:
    return " ".join(ask(*arguments, code=2).split())


def test_a_member_of_the_family_on_usual_gpus() -> None:
    text = ask("m2.7")
    for word in ("230.1 GB = 214.3 GiB", "253,952 bytes a token", "rtx-pro-6000", "b200", "tp 4"):
        assert word in text
    assert "mi300x" not in text
    assert "no engine" in ask("m2.7", "--all")


def test_the_best_layout_of_eight_gpus() -> None:
    text = ask("m2.7", "--gpu", "h200", "--gpus", 8)
    for word in ("8 × H200", "tp 8: attention cut over 8", "layouts that were considered (10 more", "KV cache",
                 "tokens of KV cache in all", "mm2c build CHECKPOINT --tp 8"):  # fmt: skip
        assert word in text
    assert ask("m2.7", "--gpu", "h200", "--gpus", 8, "--all").count("│ fits") > text.count("│ fits")


def test_json_is_one_document_with_the_tokens() -> None:
    found = asked("m2.7", "--gpu", "h200", "--tp", 4, "--dp", 2, "--context", 65536, "--batch", 16)
    assert found["fits"]
    assert found["layout"]["given"]
    assert len(found["per_gpu"]) == found["gpus"] == 8
    assert found["kv_capacity_tokens"] == 2 * found["per_gpu"][0]["kv_capacity_tokens"]
    assert found["what_fits"][-1]["context"] == 65536
    assert found["rows_per_group"] == 8


def test_an_fp8_cache_holds_twice_the_tokens() -> None:
    full, half = (asked("m2.7", "--gpu", "h100", "--tp", 4, "--kv-dtype", kind) for kind in ("bf16", "fp8"))
    assert half["kv_capacity_tokens"] == pytest.approx(2 * full["kv_capacity_tokens"], rel=1e-3)
    assert asked("m2.7", "--gpu", "b300", "--tp", 4, "--bf16")["model"]["weights_bytes"] > 455e9


def test_a_memory_size_stands_for_a_gpu() -> None:
    binary, decimal = (asked("m2.7", "--memory", size, "--tp", 4) for size in ("96GiB", "96GB"))
    assert binary["per_gpu"][0]["memory_bytes"] == 96 << 30
    assert decimal["per_gpu"][0]["memory_bytes"] == 96 * 10**9
    assert binary["gpu"]["speeds_assumed"]
    assert asked("m2.7", "--gpu", "h200", "--memory", "100GiB", "--tp", 4)["gpu"]["name"] == "h200"


def test_what_does_not_fit_exits_1_with_figures_and_remedies() -> None:
    text = ask("m2.7", "--gpu", "h100", "--tp", 2, code=1)
    assert "GiB short" in text
    assert "fits with 4 GPUs (--tp 4)" in text
    assert "no room" in text
    assert "55.2 GiB short of 204,800 tokens" in text
    assert "none: there is no room for a KV cache" in text
    assert "-" not in [cell.strip()[:1] for cell in text.split("│")]
    assert "tp 2 (the closest: none fits)" in ask("m2.7", "--gpu", "h100", "--gpus", 2, code=1)
    some = " ".join(ask("m2.7", "--gpu", "h100", "--tp", 4, "--batch", 16, code=1).split())
    assert "380,736 tokens, 171.2 GiB short of" in some
    found = asked("m2.7", "--gpu", "h100", "--tp", 2, code=1)
    assert found["fits"] is False
    assert found["short_bytes"] > 50 << 30
    assert found["remedies"]


def test_the_guide_beside_ours() -> None:
    text = ask("m2.7", "--guide")
    for word in ("220 GB", "240 GB", "400 K", "3.00 M", "refused", "97,887 MiB", "of each GPU's 90%"):
        assert word in text
    found = asked("m2.7", "--guide")
    assert {row["configuration"] for row in found["rows"]} >= {"4 × 96 GB", "8 × 144 GB", "2 × 192 GB"}
    assert all(sum(t["tokens"] for t in row["arithmetic"]) > 0 for row in found["rows"])


def test_the_report_folder(tmp_path: Path) -> None:
    ask("m2.7", "--gpu", "h200", "--gpus", 4, "-o", tmp_path / "report")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "memory.html",
        "memory.svg",
        "plan.json",
    ]


def test_a_checkpoint_s_own_formats_are_planned(
    random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    mixed = random_checkpoint(layers=1, quant="mixed")
    text = ask(mixed, "--gpu", "l40s", "--tp", 2)
    assert "experts in FP8" in text
    assert f"mm2c build {mixed} --tp 2" in text
    assert "all in bf16" in ask(mixed, "--gpu", "l40s", "--bf16")
    (bare := tmp_path / "config.json").write_bytes((mixed / "config.json").read_bytes())
    assert "no weights are there" in ask(bare, "--gpu", "l40s")


def test_the_onnxruntime_engine_is_planned_on_the_cpu(tiny_m2: Path) -> None:
    found = asked(tiny_m2, "--engine", "onnxruntime", "--tp", 2)
    assert found["fits"]
    assert found["total_bytes"] == found["weights_bytes"] + found["kv_bytes"] + found["activations_bytes"]
    assert "does not fit" in ask("m2.7", "--engine", "onnxruntime", "--memory", "64GiB", code=1)


@pytest.mark.parametrize("arguments", [["--gpu", "h200", "--gpus", "8", "--all"], ["--guide"], ["--all"]])
def test_a_terminal_of_100_columns_is_enough(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Console(width=100, force_terminal=True, highlight=False, color_system=None, record=True)
    for module in (console, plan_tables, plan_guide):
        monkeypatch.setattr(module, "out", wide)
    ask("m2.7", *arguments)
    lines = wide.export_text().splitlines()
    tables = [line for line in lines if line[:1] in "┏┃│└├┡"]
    assert tables
    assert max(map(len, tables)) <= 100
    assert not any("…" in line for line in tables)  # nothing is cut


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("m2.7", "--gpu", "h2000"), "did you mean h200"),
        (("m2.7", "--memory", "96"), "it has no unit"),
        (("m2.7", "--gpu", "h200", "--tp", 6), "the nearest layouts that can: --tp 8 (8 GPUs,"),
        (("m2.7", "--gpu", "h100", "--tp", 5), "the nearest layouts that can: --tp 4 (4 GPUs,"),
        (("m2.7", "--gpu", "h200", "--gpus", 4, "--tp", 8), "--gpus says 4"),
        (("m2.7", "--gpu", "h200", "--gpus", 7, "--ep", 5), "no layout of --gpus 7 --ep 5"),
        (("m2.7", "--context", 300000), "longer than the model's context of 204800"),
        (("m2.7", "--kv-dtype", "int4"), "--kv-dtype int4"),
        (("m2.7", "--fp8", "--bf16"), "exclude each other"),
        (("m2.7", "--engine", "tpu"), "cannot be planned for"),
        (("m2.7", "--engine", "onnxruntime", "--gpu", "h200"), "runs on the CPU"),
        (("m2.7", "-o", "report"), "a report is of one kind of GPU"),
        (("m2.7", "--guide", "--gpu", "h200"), "--guide has GPUs of its own"),
        (("nowhere-at-all",), "there is no folder nowhere-at-all"),
        (("m2.8",), "did you mean"),
    ],
)
def test_refusals(arguments: tuple[object, ...], said: str) -> None:
    assert said in refused(*arguments)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert "it has no config.json" in refused(tmp_path, "--gpu", "h200")
    (tmp_path / "config.json").write_text("{")
    assert "not valid JSON" in refused(tmp_path / "config.json")


def test_help_teaches_with_examples() -> None:
    text = ask("--help")
    assert "mm2c plan m2.7 --gpu h200 --gpus 8" in text
    assert "--guide" in text


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from mm2c.cli.main import app; "
        "r = CliRunner().invoke(app, ['plan', 'm2.7', '--gpu', 'h200', '--gpus', '8', '--json']); "
        "print(r.exit_code, [m for m in ('torch', 'transformers', 'onnxruntime', 'onnxscript') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "0 []"


def test_build_says_whether_it_fits_the_gpu(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = random_checkpoint(layers=1)
    arguments = ["build", str(checkpoint / "config.json"), "--config-only", "--engine", "cuda"]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "b"), "--gpu", "h200", "--json"])
    assert result.exit_code == 0, result.output
    assert any("1 × H200" in note for note in json.loads(result.stdout)["notes"])
    assert (tmp_path / "b" / "report" / "memory.svg").is_file()
    unknown = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "c"), "--gpu", "h2000"])
    assert unknown.exit_code == 2
    assert "did you mean h200" in unknown.output
