"""The command line's refusals: a message with the remedy, an exit status, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mm2c.cli.main import app


@pytest.fixture
def mm2c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("MM2C_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("MM2C_CHECKPOINT", raising=False)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(a) for a in arguments])


@pytest.fixture
def checkpoint(random_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(random_checkpoint(layers=1, intermediate=256), tmp_path / "m2"))


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    lines = result.output.splitlines()
    lines = [line for line in lines if not line.startswith("· ")]  # stages that had begun
    assert lines[0].startswith("error:"), result.output
    assert "Traceback" not in result.output
    flat = " ".join(result.output.split())
    for word in words:
        assert word in flat, result.output


@pytest.mark.parametrize("verb", ["build", "inspect", "verify", "serve", "chat"])
def test_every_verb_explains_itself(mm2c: Callable[..., Result], verb: str) -> None:
    result = mm2c(verb, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 10


def test_version(mm2c: Callable[..., Result]) -> None:
    assert mm2c("--version").output.startswith("mm2c ")


def test_illegal_tp_lists_the_legal_values(
    mm2c: Callable[..., Result], checkpoint: Path, tmp_path: Path
) -> None:
    refused(mm2c("build", checkpoint, "--tp", 3, "-o", tmp_path / "out"), "tp 3", "1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tokenizer.json", "{", ("tokenizer.json does not load", "remedy:")),
        ("tokenizer_config.json", "{", ("tokenizer_config.json is not valid JSON", "remedy:")),
        ("chat_template.jinja", "{% if %}", ("syntax error in line 1", "remedy:")),
        ("generation_config.json", '{"eos_token_id": 2, "top_p": 7}', ("top_p is 7", "remedy:")),
    ],
)
def test_chat_files_that_cannot_be_served_are_refused_before_any_work(
    mm2c: Callable[..., Result],
    checkpoint: Path,
    tmp_path: Path,
    name: str,
    text: str,
    words: tuple[str, ...],
) -> None:
    (checkpoint / name).write_text(text)
    result = mm2c("build", checkpoint, "-o", tmp_path / "out")
    refused(result, *words)
    assert "Tracing" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_shard_is_named(mm2c: Callable[..., Result], checkpoint: Path, tmp_path: Path) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[0]
    shard.unlink()
    refused(mm2c("build", checkpoint, "-o", tmp_path / "out"), shard.name)
    assert not (tmp_path / "out").exists()


def test_a_truncated_shard_is_named(mm2c: Callable[..., Result], checkpoint: Path, tmp_path: Path) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[0]
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 100)
    refused(mm2c("build", checkpoint, "-o", tmp_path / "out"), shard.name)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model_type", "minimax_m1", ("minimax_m2",)),
        ("sliding_window", 4096, ("sliding_window", "4096")),
        ("hidden_act", "gelu", ("hidden_act",)),
        ("brand_new_key", 1, ("brand_new_key",)),
    ],
)
def test_config_keys_that_are_not_compiled_are_refused_by_name(
    mm2c: Callable[..., Result],
    checkpoint: Path,
    tmp_path: Path,
    key: str,
    value: object,
    words: tuple[str, ...],
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, key: value}))
    refused(mm2c("build", checkpoint, "-o", tmp_path / "out"), *words)


def test_nothing_to_build_teaches(
    mm2c: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(mm2c("build", "--tp", 4, "--fp8"), "MM2C_CHECKPOINT")


def test_two_formats_at_once_are_refused(
    mm2c: Callable[..., Result], checkpoint: Path, tmp_path: Path
) -> None:
    refused(mm2c("build", checkpoint, "--fp8", "--bf16", "-o", tmp_path / "out"), "exclude each other")


def test_an_unknown_place_of_weights_is_refused(
    mm2c: Callable[..., Result], checkpoint: Path, tmp_path: Path
) -> None:
    refused(mm2c("build", checkpoint, "--weights", "link", "-o", tmp_path / "out"), "copy", "checkpoint")


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_an_output_with_other_things_in_it_is_left_alone(
    mm2c: Callable[..., Result], checkpoint: Path, tmp_path: Path, force: tuple[str, ...]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    refused(mm2c("build", checkpoint, *force, "-o", tmp_path / "out"), "other things in it", "another -o")
    assert (tmp_path / "out" / "mine").read_text() == "precious"


def test_an_output_that_cannot_be_written_is_refused(
    mm2c: Callable[..., Result], checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    refused(mm2c("build", checkpoint, "-o", tmp_path / "file" / "out"), "output")


def test_an_engine_that_does_not_exist_is_refused_with_those_that_do(
    mm2c: Callable[..., Result], checkpoint: Path, tmp_path: Path
) -> None:
    asked = mm2c("build", checkpoint, "--engine", "warp-drive", "-o", tmp_path / "out")
    refused(asked, "warp-drive", "onnxruntime", "tensorrt-rtx")


def test_too_long_a_context_is_refused(mm2c: Callable[..., Result], checkpoint: Path, tmp_path: Path) -> None:
    refused(mm2c("build", checkpoint, "--context", 999_999, "-o", tmp_path / "out"), "999999")
