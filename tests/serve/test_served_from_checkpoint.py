"""A bundle without weights files under the real Triton: it serves from the checkpoint, wherever that is said to be, and
refuses one that was changed before anything starts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from served import MM2C, Served

from mm2c.checkpoint import Checkpoint
from mm2c.pipeline import build_bundle
from mm2c.request import BuildRequest
from mm2c_runtime.weights.checkpoint import VARIABLE

ASKED = dict(text_input="The weather in Paris", max_tokens=8, temperature=0.0, return_token_ids=True)
FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


@pytest.fixture(scope="module")
def moved(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle at tp 2 whose checkpoint is no longer where it was, and where it is."""
    folder = tmp_path_factory.mktemp("moved")
    shutil.copytree(tiny_m2, folder / "first")
    build_bundle(
        BuildRequest(
            source=str(folder / "first"),
            output=folder / "bundle",
            tp=2,
            context=256,
            cache=False,
            weights="checkpoint",
        )
    )
    (folder / "first").rename(folder / "second")
    return folder / "bundle", folder / "second"


def refused(bundle: Path, *options: str) -> str:
    done = subprocess.run(
        [MM2C, "serve", str(bundle), *FREE_PORTS, *options], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "starting tritonserver" not in done.stderr
    return " ".join(done.stderr.split())


def test_a_checkpoint_that_is_gone_is_told(moved: tuple[Path, Path]) -> None:
    bundle, second = moved
    said = refused(bundle)
    assert "its checkpoint is not there" in said
    assert str(second.with_name("first")) in said
    assert VARIABLE in said
    assert "--checkpoint" in said


def test_a_moved_checkpoint_is_served(
    moved: tuple[Path, Path], tiny_m2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the option and by the variable, also as a relative path: what the bundle with weights answers."""
    from mm2c_runtime.bundle import Bundle

    bundle, second = moved
    copy = tmp_path / "copy"
    build_bundle(BuildRequest(source=str(tiny_m2), output=copy, tp=2, context=256, cache=False))
    with Bundle.load(copy, threads=1) as loaded:
        expected = loaded.generate(prompt=ASKED["text_input"], max_tokens=8, temperature=0.0)
    monkeypatch.chdir(second.parent)
    for options, variable in ((("--checkpoint", second.name), None), ((), str(second))):
        if variable is not None:
            monkeypatch.setenv(VARIABLE, variable)
        server = Served(bundle, tmp_path, *options)
        try:
            answer = server.generate(**ASKED)
            assert (answer["reasoning_output"], answer["text_output"]) == (expected.reasoning, expected.text)
        finally:
            assert server.stop() == 0


def test_a_changed_checkpoint_is_refused(moved: tuple[Path, Path], tmp_path: Path) -> None:
    """One bit of one weight, and config.json; the message reaches whoever started the server."""
    bundle, second = moved
    changed = tmp_path / "changed"
    shutil.copytree(second, changed)
    with Checkpoint.open(changed) as checkpoint:
        place = checkpoint.tensors["model.norm.weight"]
    with (changed / place.file).open("r+b") as file:
        file.seek(place.offset)
        byte = file.read(1)[0]
        file.seek(place.offset)
        file.write(bytes([byte ^ 1]))
    said = refused(bundle, "--checkpoint", str(changed))
    assert "the weights are not those that the bundle was built from" in said
    assert str(changed) in said
    assert "bring the original back" in said
    config = changed / "config.json"
    config.write_text(config.read_text().replace("{", '{"another": 1, ', 1))
    assert "this is another checkpoint than the bundle's" in refused(bundle, "--checkpoint", str(changed))
