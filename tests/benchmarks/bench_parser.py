"""Throughput of MessageStream, in characters a second: python tests/benchmarks/bench_parser.py [chunk …]

Texts of half and twice a million characters show that the cost is linear in the length.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

from mm2c_runtime.parsing import MessageStream

TOOLS = [
    {
        "function": {
            "name": "write_file",
            "parameters": {"properties": {"text": {"type": "string"}, "data": {"type": "object"}}},
        }
    }
]
LINE = 'if a < b and "c" in d:\n    return e  # é\n'
RUNS = 3


def call(parameter: str, value: str) -> str:
    opening = f'<minimax:tool_call>\n<invoke name="write_file">\n<parameter name="{parameter}">'
    return f"{opening}{value}</parameter>\n</invoke>\n</minimax:tool_call>"


def many_calls(text: str) -> str:
    return "\n".join(call("text", line) for line in text[: len(text) // 4].splitlines())


TEXTS: dict[str, Callable[[str], str]] = {
    "reasoning": lambda text: text,
    "content": lambda text: "</think>\n\n" + text,
    "string argument": lambda text: call("text", text),
    "string with </invoke>": lambda text: call("text", "</invoke>" + text),
    "object argument": lambda text: call("data", '{"a": [' + "1, " * (len(text) // 3) + "1]}"),
    "many calls": many_calls,
    "half-markers": lambda text: "</think>" + "\n<minimax:tool_cal" * (len(text) // 18),
    "half-headers": lambda text: "<minimax:tool_call>" + '<invoke name="' * (len(text) // 14),
}


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
                text = build(LINE * (length // len(LINE)))
                rates.append(len(text) / seconds(text, chunk))
            print(f"{name:24}{chunk:>8}{rates[0]:>12,.0f}{rates[1]:>12,.0f}")


if __name__ == "__main__":
    main()
