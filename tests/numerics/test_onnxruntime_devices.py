"""The path on which GPUs run ONNX Runtime's programs, on devices that are this machine's memory: every logit is, bit
for bit, that of the same programs on the CPU. One rank, and four in two attention groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_device import HostDevice

from mm2c.pipeline import BuildRequest, build_bundle
from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.step import RowCopy, RowStep, StepBatch

SIZES = {"context": 256, "max_rows": 6, "prefill_chunk": 48}
LAYOUTS: list[dict[str, int]] = [{}, {"tp": 2, "dp": 2, "ep": 4}]
PROMPTS = [[5, 90, 17, 33, 260, 8, 41], [44, 7, 500, 2], list(range(9, 73))]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(
    scope="module", params=LAYOUTS, ids=lambda layout: "-".join(f"{k}{v}" for k, v in layout.items()) or "one"
)
def bundle(request: pytest.FixtureRequest, tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not request.param:
        return request.getfixturevalue("cpu_bundle")  # type: ignore[no-any-return]
    output = tmp_path_factory.mktemp("devices") / "bundle"
    build_bundle(
        BuildRequest(
            source=str(tiny_m2), output=output, engine="onnxruntime", cache=False, **SIZES, **request.param
        )
    )
    return output


def chunk(row: int, tokens: list[int], past: int) -> StepBatch:
    return StepBatch(past, "prefill", [RowStep(row, tokens, past, len(tokens), sample=False)])


def decode(tokens: list[int], pasts: list[int], **more: Any) -> StepBatch:
    rows = [RowStep(n, [t], p, 1, sample=False) for n, (t, p) in enumerate(zip(tokens, pasts, strict=True))]
    return StepBatch(1, "decode", rows, **more)


def test_devices_compute_what_the_cpu_does(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    ranks = len(manifest.lowerings["portable"].ranks)
    devices = [HostDevice(total=1 << 34) for _ in range(ranks)]
    host = OnnxRuntimeExecutor(bundle, manifest, "portable", threads=1)
    there = OnnxRuntimeExecutor(bundle, manifest, "portable", threads=1, devices=devices)
    groups = host.kv.groups
    assert there.kv == host.kv

    def both(*batches: StepBatch) -> np.ndarray[Any, Any]:
        given = [*batches, *[None] * (groups - len(batches))]
        expected, found = host.forwards(given), there.forwards(given)
        for left, right in zip(expected, found, strict=True):
            assert (left is None) == (right is None)
            assert left is None or np.array_equal(left, right)
        assert expected[0] is not None
        return expected[0]

    last = []
    for row, prompt in enumerate(PROMPTS):
        for start in range(0, len(prompt), 24):
            logits = both(chunk(row, prompt[start : start + 24], start))
        last.append(int(logits[0].argmax()))
    lengths = [len(prompt) for prompt in PROMPTS]
    before = [len(device.calls) for device in devices]
    for n in range(3):
        last = [int(own.argmax()) for own in both(decode(last, [length + n for length in lengths]))]
    # A row's new position of K and of V of each layer, and nothing else of the cache, was copied.
    own = [device.calls[start:] for device, start in zip(devices, before, strict=True)]
    kv = manifest.lowerings["portable"].ranks[0].kv
    for calls in own[: manifest.mapping.tp]:
        assert calls == [(4 * kv.head_dim, kv.kv_heads)] * (3 * 2 * kv.layers * len(PROMPTS))
    both(decode([3], [lengths[2] + 3], copies=[RowCopy(2, 0, lengths[2] + 3)], released=[0]))
    if groups > 1:  # one group prefills while the other decodes
        both(decode([4], [lengths[2] + 4]), chunk(0, PROMPTS[0], 0))
    both(chunk(1, PROMPTS[1], 0))  # a row that held something else
    host.close()
    there.close()
    assert all(device.closed for device in devices)


def test_verify_runs_on_the_provider(cpu_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mm2c verify --provider cuda` compares what the GPUs would run, and refuses what they would not."""
    from mm2c.progress import Quiet
    from mm2c.verify.run import verify_checkpoint
    from mm2c_runtime.errors import BundleError
    from mm2c_runtime.executors import provider

    opened: list[HostDevice] = []

    def open_devices(ranks: int) -> list[HostDevice]:
        opened.extend(HostDevice(total=1 << 34) for _ in range(ranks))
        return opened

    monkeypatch.setattr(provider, "open_devices", open_devices)
    outcome = verify_checkpoint(cpu_bundle, None, "all", 2, 2, Quiet(), provider="cuda")
    assert outcome.passed
    assert {result.lowering for result in outcome.results} == {"portable"}
    assert [device.closed for device in opened] == [True]
    with pytest.raises(BundleError, match="'fast' is made of"):
        verify_checkpoint(cpu_bundle, None, "fast", 2, 2, Quiet(), provider="cuda")
    with pytest.raises(BundleError, match="no execution provider"):
        verify_checkpoint(cpu_bundle, None, "all", 2, 2, Quiet(), provider="tpu")
