"""The parser tests of mlx-lm and mlx-openai-server."""

from __future__ import annotations

from completions import block, invoke, tool
from peer_cases.case import INTEGER, STRING, Case, one, streamed

OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
SEAS = [tool("seas", {"name": STRING, "depth": INTEGER})]
PAGE = '<!DOCTYPE html>\n<html lang="de">\n  <body><p>Moin</p></body>\n</html>'


def process(**values: str) -> str:
    return block(invoke("process", **values))[1:]


CASES = [
    Case(
        "indented tags",
        "mlx-lm test_parse_simple_tool_call",
        OPEN
        + '\n        <invoke name="seek">\n        <parameter name="town">Oslo</parameter>\n        </invoke>\n        '
        + CLOSE,
        one("seek", town="Oslo"),
    ),
    Case(
        "text, a number, a truth value",
        "mlx-lm test_parse_multiple_parameters",
        process(q="sea life", n="10", images="true"),
        one("process", q="sea life", n=10, images=True),
    ),
    Case(
        "two tools",
        "mlx-lm test_parse_multiple_invokes",
        block(invoke("a", x="1"), invoke("b", y="2"))[1:],
        [("a", {"x": 1}), ("b", {"y": 2})],
    ),
    Case(
        "a list and an object",
        "mlx-lm test_parse_json_array_parameter, test_parse_json_object_parameter",
        process(tags='["sea", "life"]', look='{"lamp": "red", "rows": 14}'),
        one("process", tags=["sea", "life"], look={"lamp": "red", "rows": 14}),
    ),
    Case(
        "single quotes",
        "mlx-lm test_parse_with_single_quotes",
        block("<invoke name='get'>\n<parameter name='id'>123</parameter>\n</invoke>"),
        one("get", id=123),
    ),
    Case(
        "a whole answer",
        "mlx-lm test_extract_from_full_response",
        "I look." + block(invoke("find", q="reefs")) + "\nMore soon.",
        one("find", q="reefs"),
        "I look.\nMore soon.",
    ),
    streamed(
        "the same parameter twice",
        "mlx-openai-server test_minimax_m2_tool_parsing_streaming",
        [
            "I wonder",
            " about it",
            ".</think>" + OPEN,
            '<invoke name="find">\n',
            '<parameter name="q">reefs</parameter>\n',
            '<parameter name="q">wrecks</parameter>\n',
            "</invoke>\n",
            CLOSE,
        ],
        one("find", q="wrecks"),
        "",
        "I wonder about it.",
        starts_in_reasoning=True,
    ),
    Case(
        "a page of HTML",
        "mlx-openai-server pull request 164; xgrammar, html",
        f'{OPEN}<invoke name="seas"><parameter name="name">{PAGE}</parameter>'
        f'<parameter name="depth">100</parameter></invoke>{CLOSE}',
        one("seas", name=PAGE, depth=100),
        tools=SEAS,
    ),
]
