"""Throughput of MessageStream, in characters a second: python tests/benchmarks/bench_parser.py [chunk …]

Texts of half and twice a million characters show that the cost is linear in the length. The target is 500,000 in chunks
of four for reasoning, content and arguments.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "parsing"))

from long_completions import TEXTS, TOOLS

from mm2c_runtime.parsing import MessageStream

RUNS = 3


def seconds(text: str, chunk: int) -> float:
    runs = []
    for _ in range(RUNS):
        parser = MessageStream(TOOLS)
        begin = time.perf_counter()
        for at in range(0, len(text), chunk):
            parser.feed(text[at : at + chunk])
        parser.finish()
        runs.append(time.perf_counter() - begin)
    return statistics.median(runs)


def main() -> None:
    chunks = [int(chunk) for chunk in sys.argv[1:]] or [4]
    print(f"{'text':24}{'chunk':>8}{'0.5 M':>12}{'2 M':>12}   characters/s, median of {RUNS}")
    for name, build in TEXTS.items():
        for chunk in chunks:
            rates = []
            for length in (500_000, 2_000_000):
                text = build(length)
                rates.append(len(text) / seconds(text, chunk))
            print(f"{name:24}{chunk:>8}{rates[0]:>12,.0f}{rates[1]:>12,.0f}")


if __name__ == "__main__":
    main()
