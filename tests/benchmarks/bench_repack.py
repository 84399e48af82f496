"""The repacker's speed and memory beside `cp` and fsync of the same bytes on the same disk, taken in turns.

A checkpoint of the released widths is written to a temporary folder (beside --folder, removed afterwards) and built for
the cuda engine in each layout; each build is a process of its own. The first build of a layout traces, the next take
its graphs from the cache. Seconds are the repack's alone, the peak is the whole process's.

    python tests/benchmarks/bench_repack.py                          # 0.9 GB
    python tests/benchmarks/bench_repack.py --experts 256 --vocab 65536   # 4.5 GB, needs 10 GB of disk
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures"))
LAYOUTS = {  # tp, ep, dp
    "tp 4": (4, 1, 1),
    "tp 4 ep 4": (4, 4, 1),
    "tp 8": (8, 1, 1),
    "tp 8 ep 8": (8, 8, 1),
    "dp 2 x tp 4": (4, 1, 2),
}
SHARE, PEAK = 0.70, 1536  # of cp's throughput at least, MiB at most


def build_once(source: str, output: str, tp: int, ep: int, dp: int) -> dict[str, Any]:
    """In this process: one build, and its repack timed."""
    from mm2c.pipeline import build_bundle
    from mm2c.request import BuildRequest
    from mm2c.weights import writer

    found: dict[str, Any] = {}

    def timed(*arguments: Any, **options: Any) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        repack = writer.Repack(*arguments, **options)
        written = repack.run()
        found.update(
            seconds=time.perf_counter() - start,
            cpu=time.process_time() - cpu,
            bytes_read=repack.bytes_read,
            bytes_written=sum(file.bytes for file in written),
            files=len(written),
            buffers_mib=repack.buffers * writer.CHUNK / 2**20,
        )
        return written

    writer.write_all = timed
    request = BuildRequest(
        source=source, output=Path(output), tp=tp, ep=ep, dp=dp, engine="cuda", context=8192, max_rows=4
    )
    build_bundle(request)
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def copied(source: Path, target: Path) -> float:
    """Seconds of `cp` of all shards, and of their fsync."""
    target.mkdir()
    shards = sorted(source.glob("*.safetensors"))
    start = time.perf_counter()
    subprocess.run(["cp", *map(str, shards), str(target)], check=True)
    for shard in shards:
        handle = os.open(target / shard.name, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def measure(folder: Path, layouts: list[str], rounds: int, **sizes: int) -> dict[str, Any]:
    from full_width_checkpoint import write_full_width_checkpoint

    source = write_full_width_checkpoint(folder / "checkpoint", **sizes)
    stored = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    environment = {**os.environ, "MM2C_CACHE": str(folder / "cache"), "MM2C_CACHE_GB": "0.5"}
    rows: dict[str, Any] = {}
    for name in layouts:
        runs, copies = [], []
        for _ in range(rounds):
            os.sync()
            copies.append(copied(source, folder / "copy"))
            os.sync()
            command = [
                sys.executable,
                __file__,
                "--child",
                str(source),
                str(folder / "bundle"),
                *map(str, LAYOUTS[name]),
            ]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr}")
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            shutil.rmtree(folder / "bundle")
        seconds = statistics.median(run["seconds"] for run in runs)
        speed = runs[0]["bytes_written"] / seconds
        cp = stored / statistics.median(copies)
        rows[name] = {
            **runs[0],
            "seconds": seconds,
            "cpu": statistics.median(run["cpu"] for run in runs),
            "peak_mib": max(run["peak_mib"] for run in runs),
            "gb_per_second": speed / 1e9,
            "cp_gb_per_second": cp / 1e9,
            "of_cp": speed / cp,
            "best_of_cp": runs[0]["bytes_written"]
            / min(run["seconds"] for run in runs)
            * min(copies)
            / stored,
            "read_of_checkpoint": runs[0]["bytes_read"] / stored,
            "all_seconds": [round(run["seconds"], 2) for run in runs],
            "all_cp_seconds": [round(copy, 2) for copy in copies],
        }
    return {"checkpoint_bytes": stored, "layouts": rows}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        source, output, *layout = sys.argv[2:]
        tp, ep, dp = map(int, layout)
        print(json.dumps(build_once(source, output, tp, ep, dp)))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes (default: the system's)")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layouts", nargs="*", choices=list(LAYOUTS), default=list(LAYOUTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        found = measure(
            Path(name), options.layouts, options.rounds,
            layers=options.layers, experts=options.experts, vocab=options.vocab,
        )  # fmt: skip
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"checkpoint of {found['checkpoint_bytes'] / 1e9:.2f} GB")
    for name, row in found["layouts"].items():
        met = row["of_cp"] >= SHARE and row["peak_mib"] <= PEAK
        print(
            f"{name:12} {row['seconds']:6.1f} s  {row['gb_per_second']:5.2f} GB/s = {row['of_cp']:4.0%} of cp's "
            f"{row['cp_gb_per_second']:.2f}  peak {row['peak_mib']:5.0f} MiB  cpu {row['cpu']:5.1f} s  "
            f"read {row['read_of_checkpoint']:.3f} x  ({'met' if met else 'MISSED'}: {SHARE:.0%}, {PEAK} MiB)"
        )


if __name__ == "__main__":
    main()
