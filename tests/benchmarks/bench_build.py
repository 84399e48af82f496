"""Build times and peak memory, each build a process of its own with an empty cache.

The demo checkpoint at tp 4, the same again (cached, another output; and the same output), and the graphs of the real
M2.7 geometry (62 layers, 256 experts) at tp 4 from config.json alone.

    python tests/benchmarks/bench_build.py [--json] [--skip-full]
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

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
sys.path.insert(0, str(FIXTURES))
TARGETS = {  # seconds and MiB at most
    "demo tp4, empty cache": (60, 2048),
    "demo tp4, same output again": (3, 2048),
    "demo tp4, other output, cached": (3, 2048),
    "M2.7 geometry tp4, --config-only": (180, 3072),
}
MM2C = str(Path(sys.executable).with_name("mm2c"))


def timed(arguments: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Wall seconds and peak resident MiB of one `mm2c` process (its largest child included)."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [MM2C, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        assert process.stderr is not None
        raise SystemExit(f"mm2c {' '.join(arguments)} failed:\n{process.stderr.read().decode()}")
    return {"seconds": seconds, "peak_mib": usage.ru_maxrss / 1024}


def full_config(folder: Path) -> Path:
    """config.json with the geometry of the released M2.7."""
    from m2_layout import released_config

    config = released_config(
        layers=62, hidden=3072, heads=48, kv_heads=8, head_dim=128, rotary_dim=64, intermediate=1536, experts=256,
        top_k=8, vocab=200064, context=204800, rope_theta=5_000_000,
    )  # fmt: skip
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def measure(skip_full: bool) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "MM2C_CACHE": str(folder / "cache")}
        demo = ["build", str(FIXTURES / "tiny-m2"), "--tp", "4", "--fp8", "-o"]
        rows["demo tp4, empty cache"] = timed([*demo, str(folder / "a")], environment)
        rows["demo tp4, same output again"] = timed([*demo, str(folder / "a")], environment)
        rows["demo tp4, other output, cached"] = timed([*demo, str(folder / "b")], environment)
        if not skip_full:
            config = full_config(folder)
            graphs = ["build", str(config), "--tp", "4", "--config-only", "-o", str(folder / "graphs")]
            rows["M2.7 geometry tp4, --config-only"] = timed(graphs, environment)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--skip-full", action="store_true", help="leave the 62-layer graphs out")
    options = parser.parse_args()
    rows = measure(options.skip_full)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for name, row in rows.items():
        seconds, mib = TARGETS[name]
        met = "met" if row["seconds"] <= seconds and row["peak_mib"] <= mib else "MISSED"
        print(
            f"{name:36} {row['seconds']:7.1f} s   peak {row['peak_mib']:7.0f} MiB   "
            f"(target {seconds} s, {mib} MiB: {met})"
        )


if __name__ == "__main__":
    main()
