"""The one-pass repacker: files that safetensors reads, whatever goes wrong leaves none behind."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edit_weights import with_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from mm2c.checkpoint import Checkpoint
from mm2c.errors import UserError
from mm2c.weights import writer
from mm2c.weights.finite import require_finite
from mm2c.weights.layout import ALIGNMENT, WeightJob, lay_out, shared_order
from mm2c.weights.shards import Shards
from mm2c.weights.writer import Repack, write_all
from mm2c_runtime.weights.dtypes import NUMPY
from mm2c_runtime.weights.evaluate import evaluate
from mm2c_runtime.weights.recipe import Cast, Dequantize, Interleave, Recipe, Slice, Source, Transpose

Make = Callable[..., Path]


def write_one(
    recipes: dict[str, Recipe], checkpoint: Checkpoint, path: Path, progress: Any = None
) -> writer.WrittenWeights:
    return write_all([WeightJob(path, recipes)], checkpoint, progress)[0]


def rank_recipes(recipes: dict[str, Recipe], rank: int, tp: int) -> dict[str, Recipe]:
    """Column-parallel attention and half of the experts' width, as sharding makes them."""
    own: dict[str, Recipe] = {}
    for name, recipe in recipes.items():
        axis = 1 if "down_proj" in name or "o_proj" in name else 0
        axis += len(recipe.shape) == 3
        size = recipe.shape[axis]
        cut = ".self_attn." in name or ".experts." in name
        own[name] = Slice(recipe, axis, rank * size // tp, (rank + 1) * size // tp) if cut else recipe
    return own


def fast_recipes(recipes: dict[str, Recipe]) -> dict[str, Recipe]:
    """f32 in a kernel's layout, as a lowering makes them."""
    own: dict[str, Recipe] = {}
    for name, recipe in recipes.items():
        if name.endswith("_scale_inv"):
            continue
        scale = recipes.get(f"{name}_scale_inv")
        value: Recipe = Dequantize(recipe, scale, 128, 128) if scale else Cast(recipe, "f32")
        if name.endswith("gate_up_proj"):
            value = Interleave(value, 1)
        elif name.endswith("_proj.weight"):
            value = Transpose(value, (1, 0))
        own[name] = value
    return own


def check_file(
    path: Path, recipes: dict[str, Recipe], checkpoint: Checkpoint, written: writer.WrittenWeights
) -> None:
    raw = path.read_bytes()
    assert hashlib.sha256(raw).hexdigest() == written.sha256
    assert len(raw) == written.bytes
    assert set(written.entries) == set(recipes)
    with safe_open(path, "np") as file:
        assert set(file.keys()) == set(recipes)
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in recipes}
    for name, recipe in recipes.items():
        entry = written.entries[name]
        assert (entry.dtype, entry.shape) == (recipe.dtype, recipe.shape)
        assert shapes[name] == recipe.shape
        expected = np.ascontiguousarray(evaluate(recipe, checkpoint))
        assert raw[entry.offset : entry.offset + entry.nbytes] == expected.tobytes()
        assert entry.offset % expected.itemsize == 0
        if expected.nbytes % ALIGNMENT == 0:
            assert entry.offset % ALIGNMENT == 0


@pytest.mark.parametrize("quant", ["fp8", "bf16", "mixed"])
def test_whole_checkpoint(random_checkpoint: Make, tmp_path: Path, quant: str) -> None:
    with Checkpoint.open(random_checkpoint(quant=quant)) as checkpoint:
        recipes = checkpoint.recipes()
        path = tmp_path / "weights.safetensors"
        check_file(path, recipes, checkpoint, write_one(recipes, checkpoint, path))


def test_all_ranks_and_lowerings_in_one_pass(random_checkpoint: Make, tmp_path: Path) -> None:
    with Checkpoint.open(random_checkpoint()) as checkpoint:
        jobs = []
        for rank in range(2):
            portable = rank_recipes(checkpoint.recipes(), rank, 2)
            jobs.append(WeightJob(tmp_path / f"portable{rank}", portable))
            jobs.append(WeightJob(tmp_path / f"fast{rank}", fast_recipes(portable)))
        repack = Repack(jobs, checkpoint)
        written = repack.run()
        once = sum(info.nbytes for info in checkpoint.tensors.values())
        assert repack.bytes_read == once  # every tensor read exactly once, for four files
        for job, result in zip(jobs, written, strict=True):
            check_file(job.path, job.recipes, checkpoint, result)


def test_two_runs_give_the_same_bytes(random_checkpoint: Make, tmp_path: Path) -> None:
    with Checkpoint.open(random_checkpoint()) as checkpoint:
        one = write_one(checkpoint.recipes(), checkpoint, tmp_path / "a")
        two = write_one(checkpoint.recipes(), checkpoint, tmp_path / "b")
    assert one.sha256 == two.sha256


def test_progress_counts_the_bytes(random_checkpoint: Make, tmp_path: Path) -> None:
    from contextlib import contextmanager

    seen: list[int] = []
    totals: list[int | None] = []

    class Bar:
        def advance(self, amount: int = 1) -> None:
            seen.append(amount)

    class Counter:
        @contextmanager
        def stage(self, title: str, total: int | None = None) -> Any:
            totals.append(total)
            yield Bar()

        def note(self, text: str) -> None:
            return

    with Checkpoint.open(random_checkpoint()) as checkpoint:
        written = write_one(checkpoint.recipes(), checkpoint, tmp_path / "a", Counter())
    assert totals == [written.bytes] == [sum(seen)]


@settings(max_examples=100, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(
            st.sampled_from(["e4m3", "bf16", "f32"]), st.lists(st.integers(1, 9), min_size=1, max_size=3)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_layout_has_no_gaps_and_keeps_alignment(shapes: list[tuple[Any, list[int]]]) -> None:
    recipes: dict[str, Recipe] = {f"t{i}": Source(f"s{i}", d, tuple(s)) for i, (d, s) in enumerate(shapes)}
    wide: dict[str, Recipe] = {name: Cast(recipe, "f32") for name, recipe in recipes.items()}
    jobs = [WeightJob(Path("a"), recipes), WeightJob(Path("b"), wide)]
    for layout, job in zip(lay_out(jobs, shared_order(jobs)), jobs, strict=True):
        place = len(layout.header)
        assert place % ALIGNMENT == 0
        for name, entry in layout.entries.items():
            assert entry.offset == place
            assert place % {"e4m3": 1, "bf16": 2, "f32": 4}[job.recipes[name].dtype] == 0
            place += entry.nbytes
        assert place == layout.size


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_nan_weight_is_found_while_repacking(random_checkpoint: Make, tmp_path: Path, code: int) -> None:
    name = "model.layers.0.block_sparse_moe.experts.5.w2.weight"
    folder = with_bytes(random_checkpoint(), tmp_path / "m", name, 130, bytes([code]))
    with Checkpoint.open(folder) as checkpoint:
        checkpoint.validate_values()  # the scales are fine
        with pytest.raises(UserError) as caught:
            write_one(checkpoint.recipes(), checkpoint, tmp_path / "w")
    assert f"{name}[0, 130] is nan" in caught.value.what
    assert not (tmp_path / "w").exists()


def test_infinite_dense_weight(random_checkpoint: Make, tmp_path: Path) -> None:
    folder = with_bytes(random_checkpoint(), tmp_path / "m", "model.norm.weight", 4, b"\x80\x7f")  # bf16 +inf
    with (
        Checkpoint.open(folder) as checkpoint,
        pytest.raises(UserError, match=r"model\.norm\.weight\[2\] is inf"),
    ):
        write_one(checkpoint.recipes(), checkpoint, tmp_path / "w")


def test_too_little_space_is_seen_before_writing(
    random_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Status:
        f_bavail, f_frsize = 10, 4096

    monkeypatch.setattr(writer.os, "statvfs", lambda _: Status)
    with Checkpoint.open(random_checkpoint()) as checkpoint, pytest.raises(UserError) as caught:
        write_one(checkpoint.recipes(), checkpoint, tmp_path / "w")
    assert "not enough disk space" in caught.value.what
    assert list(tmp_path.iterdir()) == []


def test_disk_full_midway(random_checkpoint: Make, tmp_path: Path) -> None:
    """A process whose files may not grow beyond 1 MB: the kernel's own refusal, in the middle of the pass."""
    code = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
from mm2c.checkpoint import Checkpoint
from mm2c.errors import UserError
from mm2c.weights.layout import WeightJob
from mm2c.weights.writer import write_all
with Checkpoint.open(sys.argv[1]) as checkpoint:
    try:
        write_all([WeightJob(Path(sys.argv[2]), checkpoint.recipes())], checkpoint)
    except UserError as error:
        print(error.what)
"""
    target = tmp_path / "w"
    command = [sys.executable, "-c", code, str(random_checkpoint()), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "disk full while writing w", done.stderr
    assert not target.exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1_000_000


def test_no_space_left_removes_every_file(
    random_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def failing(handle: int, data: memoryview, place: int) -> int:
        if os.readlink(f"/proc/self/fd/{handle}").endswith("/b"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data, place)

    monkeypatch.setattr(os, "pwrite", failing)
    with Checkpoint.open(random_checkpoint()) as checkpoint:
        recipes = checkpoint.recipes()
        jobs = [WeightJob(tmp_path / name, recipes) for name in ("a", "b")]
        with pytest.raises(UserError, match="disk full while writing b"):
            write_all(jobs, checkpoint, journal=tmp_path / "journal")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["a thread", "the main thread"])
def test_interrupted_pass_removes_every_file(
    random_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupted(*_: object) -> None:
        if where == "a thread":
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)  # Python delivers it to the main thread
        time.sleep(0.2)

    monkeypatch.setattr(Shards, "read", interrupted)
    monkeypatch.setattr("mm2c.weights.sources.require_finite", lambda *_, **__: None)
    with Checkpoint.open(random_checkpoint()) as checkpoint, pytest.raises(KeyboardInterrupt):
        write_all([WeightJob(tmp_path / "w", checkpoint.recipes())], checkpoint, journal=tmp_path / "journal")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder(random_checkpoint: Make, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()  # a folder stands where the file should go
    with Checkpoint.open(random_checkpoint()) as checkpoint, pytest.raises(UserError, match="cannot write w"):
        write_one(checkpoint.recipes(), checkpoint, tmp_path / "w")


@pytest.mark.parametrize("dtype", ["e4m3", "bf16", "f16", "f32"])
def test_every_code_that_is_no_number_is_found_and_no_other(dtype: str) -> None:
    """All codes of eight and sixteen bits; of 32 those around the edges."""
    itemsize = NUMPY[dtype].itemsize
    unsigned = np.dtype(f"u{itemsize}")
    if itemsize == 4:
        edges = np.array([0, 1, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF], unsigned)
        codes = np.concatenate([edges, edges | unsigned.type(0x80000000)])
    else:
        codes = np.arange(1 << 8 * itemsize, dtype=unsigned)
    finite = np.isfinite(codes.view(NUMPY[dtype]).astype(np.float32))
    require_finite("w", codes[finite].view(NUMPY[dtype]))
    for code in codes[~finite][:: max(1, (~finite).sum() // 200)]:
        row = np.zeros((3, 2), unsigned)
        row[2, 1] = code
        with pytest.raises(UserError, match=r"w\[7, 1\] is -?(nan|inf)"):
            require_finite("w", row.view(NUMPY[dtype]), first_row=5)
