"""MiniMax: docs/tool_calling_guide.md of the model's repository, its outputs and its parser."""

from __future__ import annotations

from completions import block, invoke, tool
from peer_cases.case import STRING, UNDECLARED, Case, one

TASKS = [tool("task", {"id": STRING, "about": STRING})]


def process(**values: str) -> str:
    return block(invoke("process", **values))[1:]


CASES = [
    Case(
        "the guide's output",
        "Model Output Format",
        block(
            *(
                f'<invoke name="find">\n<parameter name="tag">["sea", "life"]</parameter>\n'
                f'<parameter name="list">["\\"{what}\\" \\"new\\""]'
                "</parameter>\n</invoke>"
                for what in ("cod", "eel")
            )
        )[1:],
        [("find", {"tag": ["sea", "life"], "list": [f'"{what}" "new"']}) for what in ("cod", "eel")],
        tools=[
            tool(
                "find",
                {"tag": {"type": "array", "items": STRING}, "list": {"type": "array", "items": STRING}},
            )
        ],
    ),
    Case(
        "the guide's usage example",
        "Usage Example",
        "I ask for it." + block(invoke("seek", town="Oslo Town", unit="m")),
        one("seek", town="Oslo Town", unit="m"),
        "I ask for it.",
        tools=[tool("seek", {"town": STRING, "unit": STRING})],
    ),
    Case(
        "digits without a schema, by the guide",
        "convert_param_value",
        process(n="42"),
        one("process", n=42),
        differs=UNDECLARED,
    ),
    Case(
        "null for a declared string",
        "convert_param_value",
        block(invoke("task", about="null"))[1:],
        one("task", about="null"),
        tools=TASKS,
        differs="a declared string is the exact text, so a text may say null; the guide's code makes it null",
    ),
    Case(
        "1 for a truth value",
        "convert_param_value",
        block(invoke("t", on="1"))[1:],
        one("t", on="1"),
        tools=[tool("t", {"on": {"type": "boolean"}})],
        differs="1 is no JSON truth value, so it stays text; the guide's code makes it true",
    ),
]
