"""Long completions in small chunks: time and memory grow with the length, not faster."""

from __future__ import annotations

import json
import random
import time
import tracemalloc

import pytest
from completions import arguments, assert_same, chunks, stream
from long_completions import LINE, TEXTS, TOOLS, call
from strategies import PIECES

from mm2c_runtime.parsing import MessageStream, parse_message


def seconds(text: str) -> float:
    """Processor time of streaming ``text`` in chunks of four characters."""
    pieces = chunks(text, [4])
    parser = MessageStream(TOOLS)
    begin = time.process_time()
    for piece in pieces:
        parser.feed(piece)
    parser.finish()
    return time.process_time() - begin


@pytest.mark.parametrize("name", TEXTS)
def test_four_times_the_text_takes_about_four_times_as_long(name: str) -> None:
    short, long = TEXTS[name](100_000), TEXTS[name](400_000)
    ratios = []
    for _ in range(4):  # what else the machine does only ever makes one of the two look slower
        ratios.append(seconds(long) / seconds(short))
        if ratios[-1] < 7:  # 16 where it is quadratic
            return
    pytest.fail(f"the time grows by {min(ratios):.1f}")


def test_a_megabyte_of_argument_is_whole() -> None:
    value = (LINE * 30_000)[:1_000_000]
    text = call("text", value)
    message = parse_message(text, TOOLS)
    assert arguments(message) == [("write_file", {"text": value})]
    assert_same(stream(chunks(text, [4]), TOOLS), message)


@pytest.mark.parametrize("name", [*TEXTS, "garbage"])
def test_memory_is_bounded_by_the_length(name: str) -> None:
    length = 300_000
    text = garbage(length) if name == "garbage" else TEXTS[name](length)
    tracemalloc.start()
    try:
        message = parse_message(text, TOOLS)
        peak = tracemalloc.get_traced_memory()[1]
        assert message is not None
    finally:
        tracemalloc.stop()
    assert peak < 60 * length


def test_ten_megabytes_of_garbage_are_read() -> None:
    text = garbage(10_000_000)
    begin = time.process_time()
    message = parse_message(text, TOOLS)
    assert time.process_time() - begin < 60  # about one
    assert sum(map(len, (message.reasoning, message.content))) <= len(text)
    assert all(isinstance(json.loads(one.arguments), dict) for one in message.tool_calls)


def garbage(length: int) -> str:
    pieces = random.Random(0).choices(PIECES, k=length // 2)
    return "".join(pieces)[:length]
