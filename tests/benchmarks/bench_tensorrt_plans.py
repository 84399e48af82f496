"""TensorRT-RTX plans of the full model from its configuration alone: time, peak memory, sizes; then from the cache.

MiniMax-M2.7 (62 layers, 256 experts) at tp 4, all ranks, no GPU. Memory is that of the build's process and of each of
its workers: the largest of them, and what all held together at most, asked every tenth of a second.

    python tests/benchmarks/bench_tensorrt_plans.py [--json] [--layers-per-plan N] [--max-rows N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MODEL = "m2.7"
SECONDS, AGAIN, MIB = 180, 5, 3072  # at most
MM2C = str(Path(sys.executable).with_name("mm2c"))


def resident(pid: int) -> dict[int, int]:
    """Bytes that a process and all below it have in memory, by process."""
    found = {}
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                found[pid] = int(line.split()[1]) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= resident(int(child))
    except OSError:  # it has ended
        pass
    return found


def measured(arguments: list[str], cache: Path, output: Path) -> dict[str, Any]:
    command = [MM2C, "build", MODEL, "--config-only", "--engine", "tensorrt-rtx", "--tp", "4", *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "-o", str(output)],
        env={**os.environ, "MM2C_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    most = {"largest": 0, "together": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            now = resident(process.pid).values()
            most["largest"] = max(most["largest"], *now, 0)
            most["together"] = max(most["together"], sum(now))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if status:
        assert process.stderr is not None
        raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr.read().decode()}")
    plans = sorted(output.glob("plans/*.plan"))
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "largest_process_mib": most["largest"] / 2**20,
        "together_mib": most["together"] / 2**20,
        "plans_mib": {path.stem: path.stat().st_size / 2**20 for path in plans},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--layers-per-plan", type=int, default=8)
    parser.add_argument("--max-rows", type=int, default=16)
    options = parser.parse_args()
    arguments = ["--layers-per-plan", str(options.layers_per_plan), "--max-rows", str(options.max_rows)]
    with tempfile.TemporaryDirectory() as name:
        first = measured(arguments, Path(name) / "cache", Path(name) / "first")
        again = measured(arguments, Path(name) / "cache", Path(name) / "again")
    if options.json:
        print(json.dumps({"first": first, "again": again}, indent=2))
        return
    sizes = ", ".join(f"{name} {size:.1f}" for name, size in first["plans_mib"].items())
    print(
        f"all ranks  {first['seconds']:6.1f} s ({first['cpu_seconds']:.1f} s CPU)   largest process "
        f"{first['largest_process_mib']:.0f} MiB, all together {first['together_mib']:.0f} MiB\n"
        f"plans      {sum(first['plans_mib'].values()):.1f} MiB: {sizes}\n"
        f"again      {again['seconds']:6.1f} s from the cache"
    )
    met = first["seconds"] <= SECONDS and first["together_mib"] <= MIB and again["seconds"] <= AGAIN
    print(f"target     {SECONDS} s, {MIB} MiB, {AGAIN} s again: {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    main()
