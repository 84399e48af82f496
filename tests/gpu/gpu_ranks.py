"""Two ranks on ONE GPU: the processes, the step protocol and the collectives' places, over gloo.

NCCL refuses two ranks on a device, so its own calls are not in this; they need two GPUs.
"""

from __future__ import annotations

import json

import torch
from report import Report, Skip
from tiny import FILES, generate


def check_ranks(report: Report) -> None:
    try:
        import pydantic  # noqa: F401
    except ImportError:
        raise Skip("pydantic is not here, which a rank's process reads the manifest with") from None
    from mm2c_runtime.ranks.executor import RankedExecutor

    golden = json.loads((FILES / "golden.json").read_text(encoding="utf-8"))
    count = torch.cuda.device_count()
    ways = {"gloo, one GPU": ("gloo", ["cuda:0", "cuda:0"])}
    if count > 1:
        ways["nccl, two GPUs"] = ("nccl", ["cuda:0", "cuda:1"])
    for name, (backend, devices) in ways.items():
        executor = RankedExecutor(FILES / "tiny-tp2", devices=devices, backend=backend, kv_tokens=4096)
        try:
            found = generate(executor, golden["prompts"], golden["count"], together=4)
        finally:
            executor.close()
        wrong = sum(a != b for a, b in zip(found, golden["tokens"], strict=True))
        report.check("ranks", f"two ranks over {name}: answers that differ", float(wrong), 0.0)
    if count < 2:
        report.add("ranks", "two ranks over nccl", "skipped", "there is one GPU")
