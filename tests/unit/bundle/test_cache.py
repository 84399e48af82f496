from __future__ import annotations

import hashlib
from pathlib import Path

from mm2c.bundle.cache import StageCache, key_of


def _source(folder: Path) -> Path:
    (folder / "rank0").mkdir(parents=True)
    (folder / "rank0" / "a").write_text("alpha")
    return folder


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


def test_a_half_stored_entry_is_never_fetched(tmp_path: Path) -> None:
    entry = tmp_path / "cache" / "graphs" / "k"
    entry.mkdir(parents=True)
    (entry / "a").write_text("half")
    assert not StageCache(tmp_path / "cache").fetch("graphs", "k", tmp_path / "t")


def test_an_entry_altered_through_a_hard_link_is_dropped(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    cache.store("graphs", "k", _source(tmp_path / "s"), ["rank0/a"])
    (tmp_path / "s" / "rank0" / "a").write_text("omega")
    assert cache.fetch("graphs", "k", tmp_path / "t") is None
    assert not (tmp_path / "cache" / "graphs" / "k").exists()


def test_keys_follow_values_and_not_their_order() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
