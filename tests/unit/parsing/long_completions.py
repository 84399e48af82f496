"""Long completions, each of which a parser could easily read in quadratic time: name → length → text."""

from __future__ import annotations

from collections.abc import Callable

TOOLS = [
    {
        "function": {
            "name": "write_file",
            "parameters": {
                "properties": {
                    "text": {"type": "string"},
                    "data": {"type": "object"},
                    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                }
            },
        }
    }
]
LINE = 'if a < b and "c" in d:\n    return e  # é\n'


def opening(parameter: str) -> str:
    return f'<minimax:tool_call>\n<invoke name="write_file">\n<parameter name="{parameter}">'


def call(parameter: str, value: str) -> str:
    return f"{opening(parameter)}{value}</parameter>\n</invoke>\n</minimax:tool_call>"


def repeated(text: str, length: int) -> str:
    return text * (length // len(text))


TEXTS: dict[str, Callable[[int], str]] = {
    "reasoning": lambda n: repeated(LINE, n),
    "content": lambda n: "</think>\n\n" + repeated(LINE, n),
    "string argument": lambda n: call("text", repeated(LINE, n)),
    "union argument": lambda n: call("note", repeated(LINE, n)),
    "object argument": lambda n: call("data", '{"a": [' + repeated("1, ", n) + "1]}"),
    "withheld, then data": lambda n: call("text", "</invoke>" + repeated(LINE, n)),
    "withheld to the end": lambda n: opening("text") + "</invoke>" + repeated(LINE, n),
    "withheld invokes": lambda n: opening("text") + repeated("</invoke>" + opening("text")[20:], n),
    "many calls": lambda n: repeated(call("text", "a line of text") + "\n", n),
    "repeated parameter": lambda n: call("text", repeated('x</parameter>\n<parameter name="text">', n)),
    "angle brackets": lambda n: call("text", "<" * n),
    "newlines": lambda n: "</think>" + "\n" * n,
    "half markers": lambda n: "</think>" + repeated("\n<minimax:tool_cal", n),
    "half ends": lambda n: call("text", repeated("</parameter", n)),
    "half headers": lambda n: "<minimax:tool_call>" + repeated('<invoke name="', n),
    "headers with attributes": lambda n: "<minimax:tool_call>" + repeated('<invoke name="a" b="c" d=', n),
    "empty blocks": lambda n: "</think>" + repeated("\n<minimax:tool_call>\n</minimax:tool_call>", n),
}
