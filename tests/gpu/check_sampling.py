"""Sampling on the device gives the tokens of the runtime's own sampler, for the same logits and seeds."""

from __future__ import annotations

import numpy as np
import torch
from operator_runner import Operator
from report import Report
from sizes import DEVICE

from mm2c_plugins.host import Library
from mm2c_runtime.sampling.sampler import Sampler
from mm2c_runtime.sampling.uniform import TokenUniform
from mm2c_runtime.step import RowStep, SamplingParams

VOCAB = 200064
WAYS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, top_k=40, top_p=0.95),
    SamplingParams(temperature=0.7, top_k=64),
    SamplingParams(temperature=1.5, top_k=20, min_p=0.05),
    SamplingParams(temperature=1e-4, top_k=8),
    SamplingParams(temperature=1.0, top_k=1),
]


def check_sampling(
    report: Report, library: Library, vocab: int = VOCAB, counts: tuple[int, ...] = (1, 17, 64)
) -> None:
    uniform = TokenUniform()
    for masked in (False, True):
        for rows in counts:
            logits = (torch.randn(rows, vocab, device=DEVICE) * 3).round(decimals=2)  # ties
            words = -(-vocab // 32)
            mask = torch.randint(-(2**31), 2**31, (rows, words), dtype=torch.int32, device=DEVICE)
            params = [WAYS[row % len(WAYS)] for row in range(rows)]
            draws = np.array([uniform(row + 11, row) for row in range(rows)], np.float64)
            columns = [
                torch.tensor([getattr(p, name) for p in params], dtype=dtype, device=DEVICE)
                for name, dtype in (("temperature", torch.float32), ("top_k", torch.int32),
                                    ("top_p", torch.float32), ("min_p", torch.float32))
            ]  # fmt: skip
            drawn = torch.from_numpy(draws.view(np.int64)).to(DEVICE)
            inputs = [logits, mask, *columns, drawn]
            call = Operator(library, "M2Sample", {"greedy": 0, "use_mask": int(masked)}, inputs)
            tokens, status = call.poisoned()
            sampler = Sampler(vocab)
            steps = []
            for row, param in enumerate(params):
                seeded = SamplingParams(**{**_fields(param), "seed": row + 11})
                bits = mask[row].cpu().numpy() if masked else None
                steps.append(RowStep(row, [0], 0, 1, True, token_index=row, sampling=seeded, bitmask=bits))
                sampler.observe(steps[-1])
            expected = [result.token for result in sampler.sample(logits.cpu().numpy(), steps)]
            wrong = sum(found != token for found, token in zip(tokens.tolist(), expected, strict=True))
            name = f"sample, {rows} rows{' with masks' if masked else ''}"
            report.check("kernels", name, float(wrong), 0.0)
            report.check("kernels", f"{name}: status", float(status.abs().max()), 0.0)
    _check_refusals(report, library, vocab)


def _check_refusals(report: Report, library: Library, vocab: int) -> None:
    """Row 0 is fine, rows 1-3 are not finite, row 4 is allowed nothing."""
    logits = torch.randn(5, vocab, device=DEVICE)
    logits[1, 77], logits[2, 0], logits[3, -1] = float("nan"), float("inf"), float("-inf")
    mask = torch.full((5, -(-vocab // 32)), -1, dtype=torch.int32, device=DEVICE)
    mask[4] = 0
    ones = torch.ones(5, device=DEVICE)
    inputs = [logits, mask, ones, torch.full_like(ones, 40, dtype=torch.int32), ones, 0 * ones,
              torch.zeros(5, dtype=torch.int64, device=DEVICE)]  # fmt: skip
    _, status = Operator(library, "M2Sample", {"greedy": 0, "use_mask": 1}, inputs).poisoned()
    report.check("kernels", "sample: bad rows are told", float(status.tolist() != [0, 1, 1, 1, 2]), 0.0)


def _fields(params: SamplingParams) -> dict[str, float]:
    return {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p")}
