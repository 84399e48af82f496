"""xgrammar: the instances of its ``minimax_xml`` style, in tests/python/test_function_calling_converter.py."""

from __future__ import annotations

from completions import block, invoke, tool
from peer_cases.case import INTEGER, STRING, Case, one

OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
SEAS = [tool("seas", {"name": STRING, "depth": INTEGER})]


def process(**values: str) -> str:
    return block(invoke("process", **values))[1:]


CASES = [
    Case(
        "a tab and a newline around a number",
        "first and second instance",
        f'{OPEN}<invoke name="seas"><parameter name="name">Nord</parameter>\t\n'
        f'<parameter name="depth">\t100\n</parameter></invoke>{CLOSE}',
        one("seas", name="Nord", depth=100),
        tools=SEAS,
    ),
    Case(
        "an additional parameter",
        "additional properties",
        f'{OPEN}<invoke name="seas"><parameter name="name">Nord</parameter>'
        f'<parameter name="where">North of here</parameter></invoke>{CLOSE}',
        one("seas", name="Nord", where="North of here"),
        tools=SEAS,
    ),
    Case(
        "a name that begins with a digit",
        "additional properties (refused)",
        f'{OPEN}<invoke name="seas"><parameter name="1st">A</parameter></invoke>{CLOSE}',
        one("seas", **{"1st": "A"}),
        tools=SEAS,
        differs="names are free: a schema may declare any",
    ),
    Case(
        "a wrong end of a parameter",
        "value</param> (refused)",
        f'{OPEN}<invoke name="seas"><parameter name="name">Nord</param></invoke>{CLOSE}',
        one("seas", name="Nord</param>"),
        tools=SEAS,
        differs="no </parameter> follows at all, so </invoke> ends the value; our grammar forbids it too",
    ),
]
