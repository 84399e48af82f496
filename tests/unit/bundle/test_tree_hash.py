"""Large files are hashed by chunks, and a flipped byte in any of them is found."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from mm2c.bundle.checksums import entries, sha256_of
from mm2c_runtime import checksums
from mm2c_runtime.checksums import check_contents, chunk_digests
from mm2c_runtime.errors import BundleError

CHUNK = 4096


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checksums, "CHUNK", CHUNK)
    monkeypatch.setattr(checksums, "_BLOCK", 1000)
    monkeypatch.setenv("MM2C_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name, size in (("empty", 0), ("small", 100), ("chunk", CHUNK), ("large", 5 * CHUNK + 17)):
        (folder / name).write_bytes(bytes(i * 7 % 251 for i in range(size)))
    return folder


def test_the_hash_is_what_the_manifest_says(bundle: Path) -> None:
    found = entries(bundle, {})
    raw = (bundle / "large").read_bytes()
    pieces = [hashlib.sha256(raw[i : i + CHUNK]).digest() for i in range(0, len(raw), CHUNK)]
    assert (
        found["large"].sha256 == hashlib.sha256(b"".join(pieces)).hexdigest() == sha256_of(bundle / "large")
    )
    assert found["large"].chunk == CHUNK
    for name in ("empty", "small", "chunk"):
        assert found[name].sha256 == hashlib.sha256((bundle / name).read_bytes()).hexdigest()
        assert found[name].chunk == 0
    check_contents(bundle, found)


@pytest.mark.parametrize("chunk", range(6))
def test_a_flipped_byte_in_any_chunk_is_found(bundle: Path, chunk: int) -> None:
    found = entries(bundle, {})
    content = bytearray((bundle / "large").read_bytes())
    content[chunk * CHUNK + 5] ^= 0x10
    (bundle / "large").write_bytes(content)
    with pytest.raises(BundleError, match="large was altered after the build"):
        check_contents(bundle, found)


def test_chunks_that_change_places_are_found(bundle: Path) -> None:
    found = entries(bundle, {})
    raw = (bundle / "large").read_bytes()
    (bundle / "large").write_bytes(raw[CHUNK : 2 * CHUNK] + raw[:CHUNK] + raw[2 * CHUNK :])
    with pytest.raises(BundleError, match="large was altered"):
        check_contents(bundle, found)


def test_what_is_left_out_has_no_entry(bundle: Path) -> None:
    assert set(entries(bundle, {}, without=frozenset({"small"}))) == {"empty", "chunk", "large"}


def test_few_chunks_wait_at_a_time(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: neither they nor their digests pile up."""
    asked = 0
    free = threading.Semaphore(0)

    def work() -> object:
        nonlocal asked
        for number in range(1000):
            asked += 1
            yield bundle / "small", 0, 100, number

    monkeypatch.setattr(checksums, "_digest", lambda *_: (free.acquire(), b"")[1])
    results = chunk_digests(work())  # type: ignore[arg-type]
    for _ in range(1000):
        free.release()
    assert next(results)[2] == 0
    assert asked <= 2 * checksums._WORKERS + 1
    assert [tag for _, _, tag in results] == list(range(1, 1000))


def test_a_file_that_is_shorter_is_named(bundle: Path) -> None:
    with pytest.raises(EOFError, match="small became shorter"):
        list(chunk_digests([(bundle / "small", 50, 100, None)]))
