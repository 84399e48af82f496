"""What the builder is configured with, the timing cache, and how many workers there are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mm2c.engine.tensorrt import processes, timing
from mm2c.engine.tensorrt.settings import configure, described


class Config:
    """IBuilderConfig as far as it is used."""

    def __init__(self, takes: bytes = b"") -> None:
        self.flags: list[str] = []
        self.features: list[str] = []
        self.capabilities: dict[int, str] = {}
        self.num_compute_capabilities = 0
        self.profiling_verbosity = ""
        self._takes = takes
        self.cache: Any = None

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def set_preview_feature(self, feature: str, enable: bool) -> None:
        assert enable
        self.features.append(feature)

    def set_compute_capability(self, capability: str, index: int) -> bool:
        self.capabilities[index] = capability
        return index < self.num_compute_capabilities

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(data=data, serialize=lambda: b"measured")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.data in (b"", self._takes):
            self.cache = cache
            return True
        return False

    def get_timing_cache(self) -> Any:
        return self.cache


TRT = SimpleNamespace(
    BuilderFlag=SimpleNamespace(REQUIRE_USER_ALLOCATION="REQUIRE_USER_ALLOCATION"),
    PreviewFeature=SimpleNamespace(ALIASED_PLUGIN_IO_10_03="ALIASED_PLUGIN_IO_10_03"),
    ProfilingVerbosity=SimpleNamespace(DETAILED="DETAILED"),
    ComputeCapability=SimpleNamespace(SM89="SM89", SM120="SM120"),
)


def test_rtx_is_told_its_targets() -> None:
    config = Config()
    configure(TRT, config, "tensorrt-rtx", ["8.9", "12.0"])
    assert config.capabilities == {0: "SM89", 1: "SM120"}
    assert config.flags == ["REQUIRE_USER_ALLOCATION"]
    with pytest.raises(ValueError, match=r"compute capability 9\.0"):
        configure(TRT, Config(), "tensorrt-rtx", ["9.0"])


def test_tensorrt_lets_plugins_write_in_place() -> None:
    config = Config()
    configure(TRT, config, "tensorrt", ["9.0"])
    assert config.features == ["ALIASED_PLUGIN_IO_10_03"]
    assert config.profiling_verbosity == "DETAILED"
    assert not config.capabilities
    assert described("tensorrt") != described("tensorrt-rtx")


def test_the_timing_cache_lives_on(tmp_path: Path) -> None:
    path = tmp_path / "tensorrt" / "timing.cache"
    config = Config()
    timing.attach(config, path)
    assert config.cache.data == b""
    timing.keep(config, path)
    assert path.read_bytes() == b"measured"
    assert [found.name for found in path.parent.iterdir()] == ["timing.cache"]
    known = Config(takes=b"measured")
    timing.attach(known, path)
    assert known.cache.data == b"measured"
    other = Config(takes=b"of another GPU")
    timing.attach(other, path)
    assert other.cache.data == b""


def test_a_timing_cache_that_cannot_be_kept_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = Config()
    timing.attach(config, tmp_path / "file" / "timing.cache")
    timing.keep(config, tmp_path / "file" / "timing.cache")
    timing.keep(Config(), tmp_path / "timing.cache")  # nothing was attached
    assert not (tmp_path / "timing.cache").exists()


@pytest.mark.parametrize(
    ("cores", "free", "count"),
    [(8, 8 << 30, 2), (1, 8 << 30, 1), (8, 800 << 20, 1), (8, 0, 1), (2, 2 << 30, 2)],
)
def test_workers_by_cores_and_memory(
    monkeypatch: pytest.MonkeyPatch, cores: int, free: int, count: int
) -> None:
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(processes, "free_memory", lambda: free)
    assert processes.workers_at_once(processes.worker_memory(8)) == count


def test_free_memory_is_some() -> None:
    assert 0 < processes.free_memory() < 1 << 50
