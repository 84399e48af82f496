"""Prefill and decode of the ONNX Runtime engine beside transformers eager, one process, fp32, B = 1.

A 364 M parameter MiniMax-M2 (8 layers, 32 experts top-4) with random weights; 512 prompt tokens, 64 decode steps.
Rounds are interleaved, so that a slow spell of the machine hits both; medians and their ratio are printed.

    python tests/benchmarks/bench_decode.py [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures"))

SHAPE: dict[str, Any] = {
    "layers": 8, "hidden": 768, "heads": 12, "kv_heads": 4, "head_dim": 64, "rotary_dim": 32, "intermediate": 512,
    "experts": 32, "top_k": 4, "vocab": 32000, "context": 1024, "quant": "bf16",
}  # fmt: skip
PROMPT, STEPS = 512, 64
TARGETS = {"prefill": 1.0, "decode": 2.2}  # times transformers' speed; below is a regression


def engine(bundle: Path) -> Callable[[list[int]], tuple[float, float, list[int]]]:
    """One run of our engine: seconds of prefill, seconds of all decode steps, greedy tokens."""
    from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor
    from mm2c_runtime.manifest_file import read_manifest
    from mm2c_runtime.step import RowStep, SamplingParams, StepBatch

    executor = OnnxRuntimeExecutor(bundle, read_manifest(bundle), lowering="fast")
    greedy = SamplingParams(temperature=0.0)

    def run(prompt: list[int]) -> tuple[float, float, list[int]]:
        def step(tokens: list[int], past: int, index: int) -> int:
            row = RowStep(
                row=0, tokens=tokens, past_len=past, new_len=len(tokens), sample=True, token_index=index,
                sampling=greedy if index == 0 else None,
            )  # fmt: skip
            kind = "prefill" if index == 0 else "decode"
            token = executor.step(StepBatch(step_id=index, kind=kind, rows=[row])).rows[0].token
            assert token is not None
            return token

        start = time.perf_counter()
        tokens = [step(prompt, 0, 0)]
        middle = time.perf_counter()
        for n in range(STEPS):
            tokens.append(step([tokens[-1]], len(prompt) + n, n + 1))
        return middle - start, time.perf_counter() - middle, tokens

    return run


def transformers_eager(checkpoint: Path) -> Callable[[list[int]], tuple[float, float, list[int]]]:
    """The same of the unmodified module: eager experts, sdpa attention, a growing cache, last-token logits."""
    import torch
    from transformers import DynamicCache

    from mm2c.checkpoint import Checkpoint
    from mm2c.verify.reference import Reference

    torch.set_num_threads(os.cpu_count() or 1)
    model = Reference(Checkpoint.open(checkpoint)).model

    @torch.inference_mode()
    def run(prompt: list[int]) -> tuple[float, float, list[int]]:
        cache = DynamicCache(config=model.config)

        def step(ids: Any) -> int:
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            return int(logits[0, -1].argmax())

        start = time.perf_counter()
        tokens = [step(torch.tensor([prompt]))]
        middle = time.perf_counter()
        for _ in range(STEPS):
            tokens.append(step(torch.tensor([[tokens[-1]]])))
        return middle - start, time.perf_counter() - middle, tokens

    return run


def measure(rounds: int) -> dict[str, Any]:
    from random_checkpoint import write_random_checkpoint

    from mm2c.pipeline import BuildRequest, build_bundle
    from mm2c.progress import Quiet

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_random_checkpoint(Path(folder) / "checkpoint", **SHAPE)
        bundle = Path(folder) / "bundle"
        build_bundle(BuildRequest(source=str(checkpoint), output=bundle, max_rows=1, cache=False), Quiet())
        runs = {"mm2c onnxruntime": engine(bundle), "transformers eager": transformers_eager(checkpoint)}
        prompt = np.random.default_rng(0).integers(0, SHAPE["vocab"], PROMPT).tolist()
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        tokens: dict[str, list[int]] = {}
        for round_ in range(rounds + 1):  # round 0 warms up
            for name, run in runs.items():
                prefill, decode, tokens[name] = run(prompt)
                if round_:
                    times[name].append((PROMPT / prefill, STEPS / decode))
    rows = {
        name: {
            "prefill_tok_s": statistics.median(t[0] for t in pairs),
            "decode_tok_s": statistics.median(t[1] for t in pairs),
        }
        for name, pairs in times.items()
    }
    ours, theirs = rows["mm2c onnxruntime"], rows["transformers eager"]
    return {
        "shape": SHAPE,
        "prompt": PROMPT,
        "steps": STEPS,
        "rounds": rounds,
        "medians": rows,
        "prefill_ratio": ours["prefill_tok_s"] / theirs["prefill_tok_s"],
        "decode_ratio": ours["decode_tok_s"] / theirs["decode_tok_s"],
        "same_tokens": tokens["mm2c onnxruntime"] == tokens["transformers eager"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.rounds)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, row in result["medians"].items():
        print(
            f"{name:20} prefill {row['prefill_tok_s']:8.1f} tok/s   decode {row['decode_tok_s']:7.2f} tok/s"
        )
    print(
        f"{'ratio':20} prefill {result['prefill_ratio']:8.2f}x       decode {result['decode_ratio']:7.2f}x",
        end="   ",
    )
    print("same greedy tokens" if result["same_tokens"] else "greedy tokens DIFFER")
    for name, target in TARGETS.items():
        met = "met" if result[f"{name}_ratio"] >= target else "MISSED"
        print(f"{'target':20} {name} {target:.1f}x: {met}")


if __name__ == "__main__":
    main()
