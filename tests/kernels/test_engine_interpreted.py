"""The cuda engine whole, on the CPU: executor → plugins → interpreted kernels, on a small random checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from interpreted import Interpreter
from test_gpu_proof import AnyMemory, library  # noqa: F401

from mm2c.verify.reference_ops import ReferenceOps
from mm2c_plugins.host import Library
from mm2c_runtime.executors.cuda.executor import CudaExecutor
from mm2c_runtime.executors.cuda.plugin_ops import PluginOps
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.step import RowStep, SamplingParams, StepBatch

PROMPT = [5, 90, 17, 33, 60, 8, 8, 41, 3, 12, 77, 19]


def test_logits_and_tokens_are_the_references(library: Library, small_bundle: Path) -> None:  # noqa: F811
    """Prefill in two chunks, a second row, decode steps of both with device sampling: the logits within bf16's
    rounding, the the tokens likewise."""
    interpreter = Interpreter(90, AnyMemory())
    library.set_launcher(interpreter)
    manifest = read_manifest(small_bundle)
    kernels = CudaExecutor(
        small_bundle, manifest, device="cpu", ops=PluginOps(library, torch.device("cpu")), kv_tokens=512
    )
    references = CudaExecutor(small_bundle, manifest, device="cpu", ops=ReferenceOps(), kv_tokens=512)
    sampling = [SamplingParams(temperature=0.0), SamplingParams(temperature=0.9, top_k=8, seed=5)]

    def prefill(step: int, row: int, begin: int, end: int) -> StepBatch:
        rows = RowStep(
            row, PROMPT[begin:end], begin, end - begin, sample=False,
            sampling=sampling[row] if begin == 0 else None, blocks=[row] if begin == 0 else [],
        )  # fmt: skip
        return StepBatch(step, "prefill", [rows])

    def decode(step: int, tokens: list[int]) -> StepBatch:
        rows = [
            RowStep(row, [token], past, 1, sample=True, token_index=step)
            for row, (token, past) in enumerate(zip(tokens, (len(PROMPT) - 1 + step, 4 + step), strict=True))
        ]
        return StepBatch(10 + step, "decode", rows)

    for step, batch in enumerate(
        [prefill(1, 0, 0, 7), prefill(2, 0, 7, len(PROMPT) - 1), prefill(3, 1, 0, 4)]
    ):
        found, expected = kernels.forward(batch), references.forward(batch)
        error = abs(found - expected).max() / expected.std()
        assert error < 0.05, f"prefill {step}"
        for executor in (kernels, references):
            for row in batch.rows:
                executor._sampler.observe(row)
    rows = decode(0, [PROMPT[-1], PROMPT[4]])
    logits = references.forward(rows)
    found, expected = kernels.step(rows).rows, references.step(rows).rows
    assert logits[0].argmax() == expected[0].token
    margin = np.sort(logits[0])[-1] - np.sort(logits[0])[-2]
    assert found[0].token == expected[0].token or margin < 0.05 * logits.std(), "greedy"
    assert logits[1][found[1].token] >= np.sort(logits[1])[-9], "drawn from the eight best"
    ran = set(interpreter.kernels)
    assert {"fp8_linear", "qk_sum_squares", "rope_kv", "attention_decode", "attention_prefill", "add_rms_norm",
            "gate_linear", "sample_chunks", "sample_pick"} <= ran  # fmt: skip
    assert any(name.startswith("moe_") for name in ran)
