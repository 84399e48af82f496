from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mm2c.bundle.cache import SEAL, StageCache, cache_capacity, key_of
from mm2c.errors import UserError


def _source(folder: Path, text: str = "alpha") -> Path:
    (folder / "rank0").mkdir(parents=True, exist_ok=True)
    (folder / "rank0" / "a").write_text(text)
    return folder


def _age(entry: Path, seconds: int) -> None:
    then = (entry / SEAL).stat().st_mtime - seconds
    os.utime(entry / SEAL, (then, then))


def test_what_was_stored_is_fetched(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    assert cache.store("graphs", "k", _source(tmp_path / "s"), ["rank0/a"])
    found = cache.fetch("graphs", "k", tmp_path / "t")
    assert found == {"rank0/a": hashlib.sha256(b"alpha").hexdigest()}
    assert (tmp_path / "t" / "rank0" / "a").read_text() == "alpha"
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["rank0"]


def test_other_keys_and_a_disabled_cache_miss(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    cache.store("graphs", "k", _source(tmp_path / "s"), ["rank0/a"])
    assert not cache.fetch("graphs", "other", tmp_path / "t")
    assert not StageCache(tmp_path / "cache", enabled=False).fetch("graphs", "k", tmp_path / "t")


def test_an_entry_over_the_limit_is_not_kept(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache", limit=3)
    assert not cache.store("weights", "k", _source(tmp_path / "s"), ["rank0/a"])
    assert not cache.fetch("weights", "k", tmp_path / "t")


def test_an_altered_bundle_alters_neither_the_cache_nor_another_bundle(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    cache.store("graphs", "k", _source(tmp_path / "s"), ["rank0/a"])
    whole = (tmp_path / "s" / "rank0" / "a").read_bytes()
    assert cache.fetch("graphs", "k", tmp_path / "t") is not None
    for altered in ("s", "t"):
        (tmp_path / altered / "rank0" / "a").write_text("omega")
    assert cache.fetch("graphs", "k", tmp_path / "u") is not None
    assert (tmp_path / "u" / "rank0" / "a").read_bytes() == whole


@pytest.mark.parametrize(
    "seal", [None, "", "{", "[1]", "null", '{"rank0/a": 5}', '{"gone": "00"}', b"\xff\xfe"]
)
def test_a_damaged_entry_is_a_miss_and_gets_replaced(tmp_path: Path, seal: str | bytes | None) -> None:
    entry = tmp_path / "cache" / "graphs" / "k"
    _source(entry, "half")
    if seal is not None:
        (entry / SEAL).write_bytes(seal if isinstance(seal, bytes) else seal.encode())
    cache = StageCache(tmp_path / "cache")
    assert cache.fetch("graphs", "k", tmp_path / "t") is None
    assert not list((tmp_path / "t").rglob("*"))
    assert cache.store("graphs", "k", _source(tmp_path / "s"), ["rank0/a"])
    assert cache.fetch("graphs", "k", tmp_path / "t")
    assert (tmp_path / "t" / "rank0" / "a").read_text() == "alpha"


def test_a_file_where_an_entry_belongs_is_a_miss_and_gets_replaced(tmp_path: Path) -> None:
    (tmp_path / "cache" / "graphs").mkdir(parents=True)
    (tmp_path / "cache" / "graphs" / "k").write_text("no folder")
    cache = StageCache(tmp_path / "cache")
    assert cache.fetch("graphs", "k", tmp_path / "t") is None
    assert cache.store("graphs", "k", _source(tmp_path / "s"), ["rank0/a"])


def test_the_entry_that_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for age, key in ((30, "old"), (20, "used"), (10, "young")):
        StageCache(root).store("graphs", key, _source(tmp_path / key), ["rank0/a"])
        _age(root / "graphs" / key, age)
    room = 2 * sum(p.stat().st_size for p in (root / "graphs" / "old").rglob("*") if p.is_file())
    assert StageCache(root).fetch("graphs", "used", tmp_path / "t")  # now the most recently used
    StageCache(root, capacity=room).store("weights", "new", _source(tmp_path / "new"), ["rank0/a"])
    assert sorted(p.name for p in root.glob("*/*")) == ["new", "used"]


def test_what_the_present_build_uses_is_never_evicted(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    StageCache(root).store("graphs", "k", _source(tmp_path / "s"), ["rank0/a"])
    _age(root / "graphs" / "k", 100)
    cache = StageCache(root, capacity=20)  # less than one entry with its seal
    assert cache.fetch("graphs", "k", tmp_path / "t")
    assert cache.store("weights", "w", _source(tmp_path / "w"), ["rank0/a"])
    assert sorted(p.name for p in root.glob("*/*")) == ["k", "w"]


def test_half_written_entries_of_killed_builds_are_swept_and_of_live_ones_are_not(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for name, age in ((".dead-1", 100_000), (".live-2", 10)):
        folder = root / "graphs" / name
        folder.mkdir(parents=True)
        then = folder.stat().st_mtime - age
        os.utime(folder, (then, then))
    StageCache(root).evict()
    assert [p.name for p in (root / "graphs").iterdir()] == [".live-2"]


def test_builds_at_the_same_time_see_whole_entries_or_none(tmp_path: Path) -> None:
    text = "content " * 2000

    def build(number: int) -> bool:
        for turn in range(12):
            cache = StageCache(tmp_path / "cache", capacity=40_000)  # two entries: eviction all the time
            key, target = f"k{(number + turn) % 3}", tmp_path / f"t{number}-{turn}"
            if cache.fetch("graphs", key, target) is None:
                assert not [p for p in target.rglob("*") if p.is_file()]
                cache.store("graphs", key, _source(tmp_path / f"s{number}-{turn}", text), ["rank0/a"])
            elif (target / "rank0" / "a").read_text() != text:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(build, range(4)))


def test_the_capacity_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MM2C_CACHE_GB", raising=False)
    assert cache_capacity() == 20_000_000_000
    monkeypatch.setenv("MM2C_CACHE_GB", "0.5")
    assert cache_capacity() == 500_000_000
    monkeypatch.setenv("MM2C_CACHE_GB", "0")
    cache = StageCache(tmp_path / "cache")
    assert not cache.store("graphs", "k", _source(tmp_path / "s"), ["rank0/a"])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_capacity_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MM2C_CACHE_GB", text)
    with pytest.raises(UserError, match="not a number of gigabytes") as refused:
        cache_capacity()
    assert "MM2C_CACHE_GB=20" in refused.value.remedy


def test_keys_follow_values_and_not_their_order() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
