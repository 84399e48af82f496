"""TensorRT's networks of one decoder layer at the released widths, evaluated on the CPU: how near they are to ONNX
Runtime and to transformers, and what that takes.

A checkpoint of one layer is written to a temporary folder (--experts of 256, which changes no width) and built for
tensorrt-rtx in each layout without its plans; each comparison is a process of its own.

    python tests/benchmarks/bench_replay.py
    python tests/benchmarks/bench_replay.py --experts 256 --tokens 24      # 15 GB of memory
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures"))
LAYOUTS = (1, 4)  # tp
WIDE, LOGITS = 1e-5, 1e-5  # of the largest number, at most


def verify_once(source: str, bundle: str, tp: int, tokens: int) -> dict[str, Any]:
    """In this process."""
    from mm2c.host_memory import peak_rss
    from mm2c.pipeline import BuildRequest, build_bundle
    from mm2c.progress import Quiet
    from mm2c.verify.run_network import verify_network

    sizes = dict(context=64, max_rows=2, prefill_chunk=16)
    build_bundle(
        BuildRequest(
            source=source,
            output=Path(bundle),
            engine="tensorrt-rtx",
            tp=tp,
            defer_plan=True,
            cache=False,
            **sizes,
        )
    )
    start = time.perf_counter()
    outcome = verify_network(Path(bundle), source, Quiet(), streamed_tokens=tokens)
    return {
        "tp": tp,
        "passed": outcome.passed,
        "network layers": outcome.layers,
        "wide": max(r.relative for r in outcome.stages if r.precision == "wide"),
        "declared bf16 steps": max(r.steps for r in outcome.stages if r.precision == "declared"),
        "left out": max(r.left_out for r in outcome.stages),
        "logits": max(r.relative for r in outcome.results),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_gib": round(peak_rss() / 2**30, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        source, bundle, tp = given.once
        print(json.dumps(verify_once(source, bundle, int(tp), given.tokens)))
        return 0
    from full_width_checkpoint import write_full_width_checkpoint

    failed = 0
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        source = write_full_width_checkpoint(
            Path(folder) / "source", layers=1, vocab=4096, experts=given.experts
        )
        for tp in LAYOUTS:
            command = [sys.executable, __file__, "--tokens", str(given.tokens), "--once", str(source)]
            command += [str(Path(folder) / f"tp{tp}"), str(tp)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            good = found["passed"] and found["wide"] <= WIDE and found["logits"] <= LOGITS
            failed |= not good
            print(json.dumps(found), "" if good else "FAIL", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
