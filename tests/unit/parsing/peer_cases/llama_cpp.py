"""llama.cpp: the MiniMax-M2 part of tests/test-chat.cpp."""

from __future__ import annotations

from completions import block, invoke, tool
from peer_cases.case import INTEGER, STRING, VERBATIM, Case, one

OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
SEAS = [tool("seas", {"name": STRING, "depth": INTEGER})]


def process(**values: str) -> str:
    return block(invoke("process", **values))[1:]


CASES = [
    Case("content", "L content", "Moin, moin!\nAll well?", content="Moin, moin!\nAll well?"),
    Case(
        "thoughts and content",
        "thoughts",
        "I'm\nunsure</think>Moin, moin!\nAll well?",
        [],
        "Moin, moin!\nAll well?",
        "I'm\nunsure",
        starts_in_reasoning=True,
    ),
    Case(
        "a call",
        "call, compact call",
        f'{OPEN}<invoke name="seas"><parameter name="depth">1</parameter></invoke>{CLOSE}',
        one("seas", depth=1),
        tools=SEAS,
    ),
    Case(
        "thoughts and a call",
        "call with thoughts",
        "I'm\nunsure</think>" + block(invoke("seas", depth="1"))[1:],
        one("seas", depth=1),
        "",
        "I'm\nunsure",
        tools=SEAS,
        starts_in_reasoning=True,
    ),
    Case(
        "a call and content",
        "call with content",
        block(invoke("seas", depth="1"))[1:] + "Moin!\nAll well?",
        one("seas", depth=1),
        "Moin!\nAll well?",
        tools=SEAS,
    ),
    Case(
        "thoughts, a call and content",
        "call with thoughts and content",
        "I'm\nunsure</think>" + block(invoke("seas", depth="1"))[1:] + "Moin!\nAll well?",
        one("seas", depth=1),
        "Moin!\nAll well?",
        "I'm\nunsure",
        tools=SEAS,
        starts_in_reasoning=True,
    ),
    Case(
        "thoughts, content and a call",
        "streaming, first text",
        "I'm\nunsure\n</think>Moin!\nAll well?" + block(invoke("seas", depth="1")),
        one("seas", depth=1),
        "Moin!\nAll well?",
        "I'm\nunsure",
        tools=SEAS,
        starts_in_reasoning=True,
    ),
    Case(
        "newlines around everything",
        "streaming, second text",
        "I'm\nunsure\n</think>\n\nMoin!\nAll well?\n" + block(invoke("seas", depth="1")) + "\n",
        one("seas", depth=1),
        "Moin!\nAll well?\n\n",
        "I'm\nunsure",
        tools=SEAS,
        starts_in_reasoning=True,
        differs=VERBATIM,
    ),
    Case(
        "a declared and another parameter",
        "streaming with an optional argument",
        block(invoke("seas", depth="1", more="2"))[1:],
        one("seas", depth=1, more=2),
        tools=SEAS,
    ),
]
