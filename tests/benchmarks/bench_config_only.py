"""Graphs of the full model from its configuration alone: time, peak memory, and sizes on disk, for several layouts.

Every build is a process of its own with an empty cache: MiniMax-M2.7 (62 layers, 256 experts), all ranks.

    python tests/benchmarks/bench_config_only.py [--json] [--engine onnxruntime|cuda] [--layout tp8]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = "m2.7"
LAYOUTS = {
    "tp4": ["--tp", "4"],
    "tp8": ["--tp", "8"],
    "tp8-ep8": ["--tp", "8", "--ep", "8"],
    "dp8-ep8": ["--dp", "8", "--ep", "8"],  # attention-DP: every rank its own requests
}
SECONDS, MIB, GRAPH_MB = 120, 2048, 5.0  # at most
MM2C = str(Path(sys.executable).with_name("mm2c"))


def measured(arguments: list[str], engine: str) -> dict[str, Any]:
    """Wall and CPU seconds, peak resident MiB of the build's process, and the sizes of what it wrote."""
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "graphs"
        command = [MM2C, "build", MODEL, "--config-only", "--engine", engine, *arguments, "-o", str(output)]
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            env={**os.environ, "MM2C_CACHE": str(Path(name) / "cache")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            assert process.stderr is not None
            raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr.read().decode()}")
        graphs = [path.stat().st_size for path in sorted(output.glob("rank*/model.onnx"))]
        return {
            "seconds": seconds,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_mib": usage.ru_maxrss / 1024,
            "ranks": len(graphs),
            "largest_graph_mb": max(graphs) / 1e6,
            "bundle_mb": sum(path.stat().st_size for path in output.rglob("*") if path.is_file()) / 1e6,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--engine", default="onnxruntime", choices=["onnxruntime", "cuda"])
    parser.add_argument("--layout", choices=list(LAYOUTS), help="one alone")
    options = parser.parse_args()
    wanted = [options.layout] if options.layout else list(LAYOUTS)
    rows = {}
    for name in wanted:
        row = rows[name] = measured(LAYOUTS[name], options.engine)
        met = row["seconds"] <= SECONDS and row["peak_mib"] <= MIB and row["largest_graph_mb"] <= GRAPH_MB
        if not options.json:
            print(
                f"{name:8} {row['ranks']} ranks {row['seconds']:6.1f} s ({row['cpu_seconds']:.1f} s CPU)   peak "
                f"{row['peak_mib']:5.0f} MiB   graph {row['largest_graph_mb']:.2f} MB   "
                f"(target {SECONDS} s, {MIB} MiB, {GRAPH_MB:.0f} MB: {'met' if met else 'MISSED'})",
                flush=True,
            )
    if options.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
