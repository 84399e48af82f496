"""kill -9 in the middle of a repack: the next one goes on, and ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mm2c.checkpoint import Checkpoint
from mm2c.errors import UserError
from mm2c.weights import outputs, writer
from mm2c.weights.journal import JOURNAL, Build, Journal, journal_key, read_claims
from mm2c.weights.layout import WeightJob
from mm2c.weights.writer import Repack
from mm2c_runtime import checksums

Make = Callable[..., Path]
CHUNK = 64 << 10
DEATH = """
import os, signal, sys
from pathlib import Path
from mm2c_runtime import checksums
from mm2c.weights import outputs, writer, commit
checksums.CHUNK = outputs.CHUNK = writer.CHUNK = int(sys.argv[5])
commit._PAUSE = 0.0
writer.DIRECT = int(sys.argv[6])
from mm2c.checkpoint import Checkpoint
from mm2c.weights.layout import WeightJob
left = int(sys.argv[4])
real = writer.Journal.append
def append(self, records):
    global left
    for record in records:
        real(self, [record])
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
writer.Journal.append = append
folder = Path(sys.argv[2])
with Checkpoint.open(sys.argv[1]) as checkpoint:
    recipes = checkpoint.recipes()
    jobs = [WeightJob(folder / name, recipes) for name in ("a.safetensors", "b.safetensors")]
    writer.write_all(jobs, checkpoint, journal=folder / ".weights.journal", key=sys.argv[3])
"""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checksums, outputs, writer):
        monkeypatch.setattr(module, "CHUNK", CHUNK)


@pytest.fixture(scope="module")
def source(random_checkpoint: Make) -> Path:
    return random_checkpoint(layers=1, seed=5)


class Notes:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.totals: dict[str, int | None] = {}

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Any]:
        self.totals[title] = total

        class Bar:
            def advance(self, amount: int = 1) -> None:
                return

        yield Bar()

    def note(self, text: str) -> None:
        self.notes.append(text)


def repack(source: Path, folder: Path, key: str = "k", progress: Any = None) -> tuple[Repack, list[Any]]:
    with Checkpoint.open(source) as checkpoint:
        recipes = checkpoint.recipes()
        jobs = [WeightJob(folder / name, recipes) for name in ("a.safetensors", "b.safetensors")]
        made = Repack(jobs, checkpoint, progress, journal=folder / JOURNAL, key=key)
        return made, made.run()


def killed(source: Path, folder: Path, after: int, key: str = "k", direct: int = 1 << 30) -> None:
    """A repack that kills itself when ``after`` chunks are in its journal."""
    folder.mkdir()
    command = [
        sys.executable,
        "-c",
        DEATH,
        str(source),
        str(folder),
        key,
        str(after),
        str(CHUNK),
        str(direct),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[str]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        for module in (checksums, outputs, writer):
            patch.setattr(module, "CHUNK", CHUNK)
        _, written = repack(source, folder)
    return {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}, [w.sha256 for w in written]


@pytest.mark.parametrize(("after", "direct"), [(1, 1 << 30), (9, 0), (20, 0), (33, 1 << 30)])
def test_a_killed_repack_is_gone_on_with(
    source: Path, tmp_path: Path, undisturbed: tuple[dict[str, bytes], list[str]], after: int, direct: int
) -> None:
    folder = tmp_path / "stage"
    killed(source, folder, after, direct=direct)
    assert journal_key(folder) == "k"
    progress = Notes()
    made, written = repack(source, folder, progress=progress)
    assert made.resumed >= after * CHUNK - 2 * CHUNK  # the last chunks are shorter
    assert "resuming an interrupted build" in progress.notes[0]
    total = sum(w.bytes for w in written)
    assert progress.totals["Writing weights"] == total - made.resumed
    assert {p.name: p.read_bytes() for p in folder.glob("*.safetensors")} == undisturbed[0]
    assert [w.sha256 for w in written] == undisturbed[1]


def test_a_repack_killed_again_and_again_ends(
    source: Path, tmp_path: Path, undisturbed: tuple[dict[str, bytes], list[str]]
) -> None:
    folder = tmp_path / "stage"
    killed(source, folder, 3)
    first = folder.stat().st_ino
    for _ in range(2):
        folder.rename(tmp_path / "elsewhere")  # as an adopting build does
        (tmp_path / "elsewhere").rename(folder)
        command = [sys.executable, "-c", DEATH, str(source), str(folder), "k", "5", str(CHUNK), "0"]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    made, written = repack(source, folder)
    assert made.resumed > 10 * CHUNK
    assert folder.stat().st_ino == first
    assert [w.sha256 for w in written] == undisturbed[1]


def test_a_finished_repack_is_only_checked(source: Path, tmp_path: Path) -> None:
    _, before = repack(source, tmp_path)
    made, written = repack(source, tmp_path)
    assert made.resumed == sum(w.bytes for w in written)
    assert made.bytes_read == 0
    assert [w.sha256 for w in written] == [w.sha256 for w in before]


def test_what_the_journal_claims_is_checked(
    source: Path, tmp_path: Path, undisturbed: tuple[dict[str, bytes], list[str]]
) -> None:
    repack(source, tmp_path)
    path = tmp_path / "a.safetensors"
    content = bytearray(path.read_bytes())
    content[3 * CHUNK + 7] ^= 1
    path.write_bytes(content)
    made, written = repack(source, tmp_path)
    assert made.resumed == sum(w.bytes for w in written) - CHUNK  # that chunk alone is written again
    assert path.read_bytes() == undisturbed[0][path.name]


def test_a_file_that_was_cut_is_written_anew(
    source: Path, tmp_path: Path, undisturbed: tuple[dict[str, bytes], list[str]]
) -> None:
    repack(source, tmp_path)
    os.truncate(tmp_path / "b.safetensors", 100)
    made, written = repack(source, tmp_path)
    assert made.resumed == written[0].bytes
    assert (tmp_path / "b.safetensors").read_bytes() == undisturbed[0]["b.safetensors"]


def test_another_build_starts_anew(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    killed(source, folder, 5)
    made, written = repack(source, folder, key="other")
    assert made.resumed == 0
    assert journal_key(folder) == "other"
    assert all(w.bytes for w in written)


def lines_of(folder: Path) -> list[bytes]:
    return (folder / JOURNAL).read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    "damage", ["a bit", "a line less of the header", "garbage", "empty", "a chunk too far"]
)
def test_a_damaged_journal_starts_anew(source: Path, tmp_path: Path, damage: str) -> None:
    repack(source, tmp_path)
    path = tmp_path / JOURNAL
    header, first, *rest = lines_of(tmp_path)
    if damage == "a bit":
        path.write_bytes(header + first[:4] + bytes([first[4] ^ 1]) + first[5:] + b"".join(rest))
    elif damage == "a line less of the header":
        path.write_bytes(first + b"".join(rest))
    elif damage == "garbage":
        path.write_bytes(os.urandom(4096))
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        journal = Journal.__new__(Journal)
        journal._file = path.open("ab", buffering=0)
        journal.append([(0, 10**6, bytes(32))])
        journal.close()
    made, written = repack(source, tmp_path)
    assert made.resumed == 0
    assert read_claims(path, made.build) is not None
    assert len(lines_of(tmp_path)) == 1 + sum(-(-w.bytes // CHUNK) for w in written)


def test_a_line_that_a_kill_cut_short_is_no_damage(source: Path, tmp_path: Path) -> None:
    repack(source, tmp_path)
    *whole, last = lines_of(tmp_path)
    (tmp_path / JOURNAL).write_bytes(b"".join(whole) + last[: len(last) // 2])
    made, _ = repack(source, tmp_path)
    assert made.resumed > 0
    assert len(lines_of(tmp_path)) == len(whole) + 1


def test_a_checkpoint_that_changed_after_the_kill(source: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(source, tmp_path / "checkpoint")
    killed(copy, tmp_path / "stage", 5)
    (shard,) = sorted(copy.glob("*.safetensors"))[:1]
    os.utime(shard)
    with pytest.raises(UserError, match=rf"shard {shard.name} changed since the interrupted build") as caught:
        repack(copy, tmp_path / "stage")
    assert caught.value.remedy
    assert not list((tmp_path / "stage").iterdir())
    made, _ = repack(copy, tmp_path / "stage")
    assert made.resumed == 0


def test_what_is_written_counts_as_space(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = repack(source, tmp_path)
    lines = lines_of(tmp_path)
    (tmp_path / JOURNAL).write_bytes(b"".join(lines[:-3]))

    class Status:
        f_bavail, f_frsize = 5 * CHUNK // 4096, 4096

    monkeypatch.setattr(writer.os, "statvfs", lambda _: Status)
    repack(source, tmp_path)
    (tmp_path / JOURNAL).unlink()
    with pytest.raises(UserError, match="not enough disk space"):
        repack(source, tmp_path)
    assert made.resumed == 0


def test_a_journal_is_read_as_written(tmp_path: Path) -> None:
    build = Build("k", (("rank0/w", 3 * CHUNK),), CHUNK, {"s": (1, 2, 3, 4)})
    journal = Journal(tmp_path / JOURNAL, build)
    journal.append([(0, 2, b"2" * 32), (0, 0, b"0" * 32)])
    journal.close()
    claims = read_claims(tmp_path / JOURNAL, build)
    assert claims is not None
    assert claims.digests == {(0, 2): b"2" * 32, (0, 0): b"0" * 32}
    assert claims.stamps == {"s": (1, 2, 3, 4)}
    assert json.loads(lines_of(tmp_path)[0].rpartition(b" ")[0])["key"] == "k"
