"""The weights of the plan against the files of real builds, to the byte, by part."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bundle"))
from stub_library import write_library

from mm2c.engine import select
from mm2c.pipeline import BuildRequest, build_bundle
from mm2c.plan.ask import Ask
from mm2c.plan.fit import memory_of
from mm2c.plan.source import read_source
from mm2c_runtime.manifest_file import read_manifest

# hidden 128, 4 heads, 4 KV heads of 128, 8 experts
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one rank": ({}, {}),
    "tp 2": ({}, {"tp": 2}),
    "tp 4, ep 2": ({}, {"tp": 4, "ep": 2}),
    "expert slices of 192 with scales of 64": ({"intermediate": 384}, {"tp": 2}),
    "expert slices of 64": ({"intermediate": 128}, {"tp": 2}),
    "KV heads held twice": ({"kv_heads": 2}, {"tp": 4}),
    "a vocabulary that tp does not divide": ({"vocab": 514}, {"tp": 4}),
    "attention-DP": ({}, {"ep": 4, "dp": 4}),
    "attention-DP over groups of two, two replicas": ({}, {"tp": 2, "ep": 4, "dp": 4}),
    "replicas": ({}, {"tp": 2, "dp": 2}),
    "FP8 experts beside bf16 attention": ({"quant": "mixed"}, {"tp": 2}),
    "a bf16 checkpoint": ({"quant": "bf16"}, {"tp": 2}),
    "bf16 of FP8": ({}, {"tp": 2, "bf16": True}),
    "FP8 of bf16": ({"quant": "bf16", "intermediate": 384}, {"tp": 2, "fp8": True}),
    "a router in f32": ({"gate_dtype": "f32"}, {"tp": 2}),
}


@pytest.fixture(autouse=True)
def machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin library, a cache of these tests, and no GPU."""
    root = tmp_path_factory.getbasetemp() / "plan"
    if not (root / "lib").is_dir():
        write_library(root / "lib")
    monkeypatch.setenv("MM2C_PLUGINS", str(root / "lib"))
    monkeypatch.setenv("MM2C_CACHE", str(root / "cache"))
    monkeypatch.setattr(select, "find_gpu", lambda: None)


def part_of(name: str) -> str:
    for part, words in {
        "embedding": ("embed_tokens",),
        "head": ("lm_head",),
        "rope": ("rope.",),
        "norms": ("norm.",),
        "router": ("gate.weight", "correction_bias"),
        "experts": ("experts",),
        "attention": ("self_attn",),
    }.items():
        if any(word in name for word in words):
            return part
    raise AssertionError(name)


@pytest.mark.parametrize("case", LAYOUTS)
def test_the_plan_is_the_files_of_the_build(
    case: str, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    shape, options = LAYOUTS[case]
    checkpoint = random_checkpoint(layers=1, **shape)
    build_bundle(
        BuildRequest(source=str(checkpoint), output=tmp_path / "b", engine="cuda", context=256, **options)
    )
    manifest = read_manifest(tmp_path / "b")
    assert manifest.cuda is not None
    target = "bf16" if options.get("bf16") else "fp8" if options.get("fp8") else "stored"
    source = read_source(str(checkpoint), target=target)  # type: ignore[arg-type]
    request = BuildRequest(**options)
    mapping = request.options(source.config, "cuda").mapping
    plan = memory_of(Ask(source.config, source.formats, 256), mapping)
    assert len(plan.ranks) == len(manifest.cuda.ranks) == mapping.ranks
    for rank, program in zip(plan.ranks, manifest.cuda.ranks, strict=True):
        found: Counter[str] = Counter()
        with (tmp_path / "b" / program.weights).open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                found[part_of(name)] += entry["data_offsets"][1] - entry["data_offsets"][0]
        assert dict(found) == {part: size for part, size in vars(rank.weights).items() if size}
        kv = program.kv
        assert rank.kv_per_token == 2 * kv.layers * kv.kv_heads * kv.head_dim * 2
    report = json.loads((tmp_path / "b" / "report" / "memory.json").read_text())["gpu"]
    assert [r["weights_bytes"] for r in report["ranks"]] == [r.weights.total for r in plan.ranks]
    assert report["replicas"] == mapping.replicas
