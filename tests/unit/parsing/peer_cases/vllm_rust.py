"""vLLM's Rust tool parser: the tests in rust/src/parser/src/tool/minimax_m2.rs, whose common prefix
``minimax_m2_`` is left out."""

from __future__ import annotations

from completions import chunks, tool
from peer_cases.case import BOOLEAN, INTEGER, NUMBER, STRING, VERBATIM, Case, one, streamed

from mm2c_runtime.parsing import Incomplete

TOOLS = [
    tool("ferry", {"pier": STRING, "boats": INTEGER}),
    tool(
        "log",
        {
            "metres": NUMBER,
            "calm": BOOLEAN,
            "entry": {"type": "object"},
            "marks": {"type": "array"},
            "blank": {"type": "null"},
            "form": STRING,
            "digits": INTEGER,
        },
    ),
]
OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
PIER = '<invoke name="ferry"><parameter name="pier">Oban</parameter></invoke>'
LAID_OUT = (
    'I ask twice.\n<minimax:tool_call>\n<invoke name="ferry">\n<parameter name="pier">Oban</parameter>\n</invoke>\n'
    '<invoke name="ferry">\n<parameter name="pier">Skye</parameter>\n</invoke>\n</minimax:tool_call>'
)
ESCAPED = "Oban &lt;/parameter&gt;&lt;/invoke&gt;&lt;/minimax:tool_call&gt;"

CASES = [
    Case("text alone", "parse_complete_without_tool_call_keeps_text", "Good day!", content="Good day!"),
    Case(
        "a typed call",
        "parse_complete_extracts_single_tool_call",
        f'{OPEN}<invoke name="ferry"><parameter name="pier">Oban</parameter><parameter name="boats">5</parameter>'
        f"</invoke>{CLOSE}",
        one("ferry", pier="Oban", boats=5),
        tools=TOOLS,
    ),
    streamed(
        "two calls in pieces of seven",
        "parse_complete_extracts_multiple_invokes, streaming_extracts_multiple_invokes_in_order",
        chunks(OPEN + PIER + PIER.replace("Oban", "Skye") + CLOSE, [7]),
        [("ferry", {"pier": "Oban"}), ("ferry", {"pier": "Skye"})],
        tools=TOOLS,
    ),
    Case(
        "every type",
        "parse_complete_converts_schema_types",
        f'{OPEN}<invoke name="log"><parameter name="metres">5.0</parameter><parameter name="calm">true</parameter>'
        '<parameter name="entry">{"deep": true}</parameter><parameter name="marks">[1,2]</parameter>'
        f'<parameter name="blank">42</parameter></invoke>{CLOSE}',
        one("log", metres=5.0, calm=True, entry={"deep": True}, marks=[1, 2], blank="42"),
        tools=TOOLS,
    ),
    Case(
        "entities stay",
        "parse_complete_preserves_raw_entities_in_parameter_value",
        f'{OPEN}<invoke name="ferry"><parameter name="pier">Salt &amp; Sand &lt;2</parameter></invoke>{CLOSE}',
        one("ferry", pier="Salt &amp; Sand &lt;2"),
        tools=TOOLS,
    ),
    Case(
        "escaped end markers stay",
        "parse_complete_preserves_raw_closing_tag_text_in_parameter_value",
        f'{OPEN}<invoke name="ferry"><parameter name="pier">{ESCAPED}</parameter><parameter name="boats">5</parameter>'
        f"</invoke>{CLOSE}",
        one("ferry", pier=ESCAPED, boats=5),
        tools=TOOLS,
    ),
    Case(
        "values of several lines",
        "parse_complete_handles_multiline_parameters",
        f'{OPEN}<invoke name="log"><parameter name="form">\nround\n</parameter>'
        '<parameter name="entry">{"long":10,\n"wide":20}</parameter><parameter name="digits">2</parameter>'
        f"</invoke>{CLOSE}",
        one("log", form="\nround\n", entry={"long": 10, "wide": 20}, digits=2),
        tools=TOOLS,
    ),
    Case(
        "emoji and umlauts",
        "streaming_matches_complete_across_boundaries",
        "Grüße 🌊 vom Meer.",
        content="Grüße 🌊 vom Meer.",
    ),
    Case(
        "a call without parameters",
        "streaming_matches_complete_across_boundaries",
        f'{OPEN}<invoke name="ferry"></invoke>{CLOSE}',
        one("ferry"),
        tools=TOOLS,
    ),
    streamed(
        "one call streamed",
        "streaming_extracts_single_tool_call",
        [OPEN, '<invoke name="ferry">', '<parameter name="pier">Oban</parameter>', "</invoke>" + CLOSE],
        one("ferry", pier="Oban"),
        tools=TOOLS,
    ),
    streamed(
        "content, then a call",
        "streaming_preserves_prefix_text",
        ["I ask. ", OPEN, PIER, CLOSE],
        one("ferry", pier="Oban"),
        "I ask. ",
        tools=TOOLS,
    ),
    streamed(
        "text in pieces",
        "streaming_without_tool_call_emits_text_incrementally",
        ["Good ", "day!"],
        content="Good day!",
    ),
    streamed(
        "markers in pieces of three",
        "streaming_handles_marker_split_across_chunks",
        chunks(OPEN + PIER + CLOSE, [3]),
        one("ferry", pier="Oban"),
        tools=TOOLS,
    ),
    streamed(
        "the template's layout in pieces of seven",
        "streaming_handles_template_whitespace_and_split_parameters",
        chunks(LAID_OUT, [7]),
        [("ferry", {"pier": "Oban"}), ("ferry", {"pier": "Skye"})],
        "I ask twice.",
        tools=TOOLS,
        differs=VERBATIM,
    ),
    Case(
        "a call that never ends",
        "streaming_does_not_emit_incomplete_tool_call, finish_fails_incomplete_tool_call",
        OPEN + '<invoke name="ferry">',
        tools=TOOLS,
        incomplete=Incomplete("call", 0, "ferry"),
        differs="the end of the text is no error; Message.incomplete tells it",
    ),
    Case(
        "a block that never begins a call",
        "finish_fails_after_bare_tool_block_start",
        OPEN,
        incomplete=Incomplete("block"),
        differs="the end of the text is no error; Message.incomplete tells it",
    ),
    Case(
        "an unknown tag in a block",
        "malformed_tool_call_fails_fast",
        OPEN + "<wrong>" + CLOSE,
        content="<wrong>",
        differs="nothing is an error: what is no invoke is content",
    ),
]
