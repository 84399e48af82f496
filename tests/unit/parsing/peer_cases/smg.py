"""smg, formerly SGLang's router: crates/tool_parser/tests/tool_parser_minimax_m2.rs, whose common prefix
``test_minimax_`` is left out."""

from __future__ import annotations

from completions import block, invoke, tool
from peer_cases.case import CUT, INTEGER, STRING, TEXT_KEPT, Case, one, streamed

from mm2c_runtime.parsing import Incomplete

OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
TASKS = [tool("task", {"id": STRING, "about": STRING})]
TASK = block(invoke("task", id="3", about="X"))[1:]
AS_JSON = "JSON in a value without a schema is read as JSON; the peer keeps its text"


def process(**values: str) -> str:
    return block(invoke("process", **values))[1:]


CASES = [
    streamed(
        "a string of digits",
        "string_arg_kept_as_string_with_schema, streaming_string_arg_kept_as_string_with_schema",
        [
            OPEN,
            '<invoke name="task">',
            '<parameter name="id">3</parameter>',
            '<parameter name="about">X</parameter>',
            "</invoke>",
            CLOSE,
        ],
        one("task", id="3", about="X"),
        tools=TASKS,
    ),
    Case(
        "an integer by its schema",
        "integer_arg_coerced_with_schema",
        TASK,
        one("task", id=3, about="X"),
        tools=[tool("task", {"id": INTEGER})],
    ),
    Case("digits without a schema", "S no_schema_infers_number", TASK, one("task", id=3, about="X")),
    Case(
        "text around",
        "complete_parsing, content_before_and_after_tool_calls",
        "I look for it." + block(invoke("seek", town="Oslo", day="2026-02-03")) + "\nAnd so on...",
        one("seek", town="Oslo", day="2026-02-03"),
        "I look for it.\nAnd so on...",
        differs=TEXT_KEPT,
    ),
    Case(
        "two blocks",
        "multiple_tools, multiple_tools_boundary",
        process(a="x y") + block(invoke("turn", text="Good Day", to="no")),
        [("process", {"a": "x y"}), ("turn", {"text": "Good Day", "to": "no"})],
    ),
    Case(
        "two invokes in a block",
        "parallel_invokes_in_one_wrapper; pull request 1824",
        block(invoke("seek", town="Oslo"), invoke("seek", town="Bern"))[1:],
        [("seek", {"town": town}) for town in ("Oslo", "Bern")],
    ),
    Case(
        "scalars without a schema",
        "type_conversion",
        process(n="42", x="1.5", on="true", none="null", text="some text"),
        one("process", n=42, x=1.5, on=True, none=None, text="some text"),
    ),
    streamed(
        "one element a chunk",
        "streaming_basic, streaming_incremental_json, streaming_state_reset",
        [
            OPEN,
            '<invoke name="seek">',
            '<parameter name="town">Oslo</parameter>',
            '<parameter name="unit">metric</parameter>',
            "</invoke>",
            CLOSE,
        ],
        one("seek", town="Oslo", unit="metric"),
    ),
    streamed(
        "two invokes, a chunk each",
        "streaming_parallel_invokes_in_one_wrapper",
        [
            OPEN,
            *(
                f'<invoke name="seek"><parameter name="town">{town}</parameter></invoke>'
                for town in ("Oslo", "Bern")
            ),
            CLOSE,
        ],
        [("seek", {"town": town}) for town in ("Oslo", "Bern")],
    ),
    Case(
        "markers of other formats",
        "format_detection",
        "<tool_call>[TOOL_CALLS]<｜tool▁calls▁begin｜>",
        content="<tool_call>[TOOL_CALLS]<｜tool▁calls▁begin｜>",
    ),
    Case(
        "Python's literals",
        "python_literals",
        process(yes="True", no="False", none="None"),
        one("process", yes="True", no="False", none="None"),
        differs="the template writes JSON: True is no JSON, and may be what the text says",
    ),
    Case(
        "nested JSON without a schema",
        "nested_json_in_parameters, invalid_json_in_parameters",
        process(
            data='{"deep": {"k": "v"}}',
            items="[1, 2]",
            wrong="{no: json}",
            open="[1, 2",
            mixed='so {"a": b} on',
        ),
        one(
            "process",
            data={"deep": {"k": "v"}},
            items=[1, 2],
            wrong="{no: json}",
            open="[1, 2",
            mixed='so {"a": b} on',
        ),
        differs=AS_JSON,
    ),
    Case(
        "entities",
        "xml_entities",
        process(html="&lt;p&gt;x&lt;/p&gt;", text="&quot;hi&quot;", code="a &amp;&amp; b"),
        one("process", html="&lt;p&gt;x&lt;/p&gt;", text="&quot;hi&quot;", code="a &amp;&amp; b"),
        differs="the template escapes nothing, so nothing is decoded",
    ),
    streamed(
        "splits within tags",
        "streaming_partial_tags",
        [
            "<minimax:tool_c",
            "all><invoke na",
            'me="seek"><param',
            'eter name="town">Os',
            "lo</parameter></inv",
            "oke></minimax:tool_call>",
        ],
        one("seek", town="Oslo"),
    ),
    Case(
        "an unknown tool",
        "unknown_function_name_is_forwarded, streaming_with_invalid_function_progressive",
        block(invoke("nobody", test="value"))[1:],
        one("nobody", test="value"),
        tools=TASKS,
    ),
    Case("no parameters", "S empty_parameters", block('<invoke name="plain">\n</invoke>')[1:], one("plain")),
    Case(
        "lines and scripts",
        "multiline_parameter_values, special_characters_in_values",
        process(
            lines="one\ntwo\nthree",
            world="海 🌍",
            signs="@#$%^&*()",
            crab="🦀 up 🚀",
            quotes="\"two\" and 'one'",
        ),
        one(
            "process",
            lines="one\ntwo\nthree",
            world="海 🌍",
            signs="@#$%^&*()",
            crab="🦀 up 🚀",
            quotes="\"two\" and 'one'",
        ),
    ),
    Case(
        "markup in values",
        "nested_xml_like_content",
        process(page="<html><p>x</p></html>", text='so <b>{"k": 1}</b>'),
        one("process", page="<html><p>x</p></html>", text='so <b>{"k": 1}</b>'),
    ),
    Case(
        "twenty parameters",
        "many_parameters",
        process(**{f"p{i}": f"value {i}" for i in range(20)}),
        one("process", **{f"p{i}": f"value {i}" for i in range(20)}),
    ),
    streamed(
        "a character a chunk",
        "character_by_character_streaming",
        list("I help. " + block(invoke("seek", town="Oslo", unit="m"))[1:] + " There it is."),
        one("seek", town="Oslo", unit="m"),
        "I help.  There it is.",
    ),
    Case(
        "cut before the end of the invoke",
        "incomplete_tool_call",
        OPEN + '\n<invoke name="seek">\n<parameter name="town">Oslo</parameter>',
        incomplete=Incomplete("call", 0, "seek", None, '{"town": "Oslo"'),
        differs=CUT,
    ),
    Case(
        "an invoke without a name",
        "malformed_invoke_tag",
        OPEN + '\n<invoke>\n<parameter name="town">Oslo</parameter>\n</invoke>\n' + CLOSE,
        [],
        '<invoke>\n<parameter name="town">Oslo</parameter>\n</invoke>\n',
        differs="of a block only the markers are dropped; the peer gives all of it back",
    ),
    streamed(
        "a value in a chunk of its own",
        "rapid_streaming_bursts",
        [
            OPEN + '<invoke name="seek"><parameter name="town">',
            "Oslo by night",
            "</parameter></invoke>" + CLOSE,
        ],
        one("seek", town="Oslo by night"),
    ),
    Case(
        "space everywhere",
        "whitespace_handling",
        OPEN + '\n    <invoke name="process">\n        <parameter name="a">  wide  </parameter>\n'
        '        <parameter name="b">\n'
        '            one\n            two\n        </parameter>\n        <parameter name="c">\ttab\t</parameter>\n'
        "    </invoke>\n" + CLOSE,
        one("process", a="  wide  ", b="\n            one\n            two\n        ", c="\ttab\t"),
    ),
    Case(
        "no call",
        "no_tools",
        "Just words.\nseek and process are words too.",
        content="Just words.\nseek and process are words too.",
    ),
]
