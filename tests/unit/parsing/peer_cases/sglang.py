"""SGLang's detector. Files, shortened in ``test``:

B: test/registered/function_call/test_minimax_m2_detector.py (its first suite); M: the later unit suite of the detector;
N: its number conversion; I: tool indices; F: finish(); C: text after a call; R: recovery. Issue numbers are SGLang's.
"""

from __future__ import annotations

from completions import block, invoke, tool
from peer_cases.case import BOOLEAN, CUT, EXACT, NUMBER, STRING, UNKNOWN, VERBATIM, Case, one, streamed

from mm2c_runtime.parsing import Incomplete

TOOLS = [
    tool("wind", {"bay": STRING, "scale": {"type": "string", "enum": ["knots", "beaufort"]}}),
    tool("chart", {"area": STRING, "zoom": NUMBER}),
    tool(
        "note",
        {
            "text": {"anyOf": [STRING, {"type": "null"}]},
            "data": {"anyOf": [{"type": "object"}, {"type": "null"}]},
        },
    ),
    tool("mode", {"brief": BOOLEAN, "rows": {"type": "array"}, "page": STRING}),
]
OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
KIEL = '<invoke name="wind"><parameter name="bay">Kiel</parameter></invoke>'


def said(id: str, test: str, invokes: str, *args: object, **fields: object) -> Case:
    return Case(id, test, OPEN + invokes + CLOSE, *args, tools=TOOLS, **fields)  # type: ignore[arg-type]


CASES = [
    said(
        "a nullable string",
        "B test_anyof_with_null_should_preserve_string_value; issue 16057",
        '<invoke name="note"><parameter name="text">ahoy</parameter></invoke>',
        one("note", text="ahoy"),
    ),
    said(
        "a null",
        "B test_anyof_with_null_should_allow_explicit_null",
        '<invoke name="note"><parameter name="text">null</parameter></invoke>',
        one("note", text=None),
    ),
    Case(
        "no end of the block",
        "B test_incomplete_tool_call_should_not_leak_to_normal_text",
        f'(3 lines){OPEN}<invoke name="mode"><parameter name="brief">false</parameter></invoke>',
        one("mode", brief=False),
        "(3 lines)",
        tools=TOOLS,
    ),
    Case(
        "no end marker leaks",
        "B test_complete_tool_call_should_not_leak_end_marker",
        f'First this.{OPEN}<invoke name="mode"><parameter name="brief">true</parameter></invoke>{CLOSE}Then that.',
        one("mode", brief=True),
        "First this.Then that.",
        tools=TOOLS,
    ),
    said(
        "the end of a parameter in a value",
        "B test_parameter_value_with_closing_tag_substring",
        '<invoke name="mode"><parameter name="page">here is </parameter> inside</parameter></invoke>',
        one("mode", page="here is "),
        differs="the format escapes nothing, so </parameter> always ends a value (the peer's own test skips it)",
    ),
    said(
        "markup in a value",
        "B test_parameter_value_with_xml_content",
        '<invoke name="mode"><parameter name="page"><p>Tide</p></parameter></invoke>',
        one("mode", page="<p>Tide</p>"),
    ),
    streamed(
        "cut before the end of the invoke",
        "B test_streaming_incomplete_tool_call_should_buffer",
        ["Before it", OPEN, '<invoke name="mode">', '<parameter name="brief">false</parameter>'],
        [],
        "Before it",
        tools=TOOLS,
        incomplete=Incomplete("call", 0, "mode", None, '{"brief": false'),
    ),
    streamed(
        "streamed between texts",
        "B test_streaming_complete_tool_call_emits_properly",
        [
            "Before ",
            OPEN,
            '<invoke name="mode">',
            '<parameter name="brief">true</parameter>',
            "</invoke>",
            CLOSE,
            " after",
        ],
        one("mode", brief=True),
        "Before  after",
        tools=TOOLS,
    ),
    said(
        "a nullable object",
        "B test_complex_anyof_with_object_and_null",
        '<invoke name="note"><parameter name="data">{"key": "v"}</parameter></invoke>',
        one("note", data={"key": "v"}),
    ),
    said(
        "a list",
        "B test_array_type_in_parameters",
        '<invoke name="mode"><parameter name="rows">[1, 2, "three"]</parameter></invoke>',
        one("mode", rows=[1, 2, "three"]),
    ),
    Case(
        "one call as the template lays it out",
        "M test_single_tool_call",
        block(invoke("wind", bay="Kiel"))[1:],
        one("wind", bay="Kiel"),
        tools=TOOLS,
    ),
    Case(
        "text before",
        "M test_normal_text_before_tool_call",
        "I ask the buoy." + block(invoke("wind", bay="Kiel")),
        one("wind", bay="Kiel"),
        "I ask the buoy.",
        tools=TOOLS,
        differs=VERBATIM,
    ),
    Case("no call", "M test_no_tool_call", "A light breeze.", content="A light breeze."),
    Case(
        "two tools",
        "M test_multiple_tool_calls",
        block(invoke("wind", bay="Kiel"), invoke("chart", area="Belt"))[1:],
        [("wind", {"bay": "Kiel"}), ("chart", {"area": "Belt"})],
        tools=TOOLS,
    ),
    Case(
        "text on the next line",
        "M test_trailing_text_after_tool_call",
        block(invoke("wind", bay="Kiel"))[1:] + "\nThat is it.",
        one("wind", bay="Kiel"),
        "\nThat is it.",
        tools=TOOLS,
        differs=VERBATIM,
    ),
    Case(
        "two arguments",
        "M test_tool_call_with_multiple_arguments",
        block(invoke("wind", bay="Kiel", scale="knots"))[1:],
        one("wind", bay="Kiel", scale="knots"),
        tools=TOOLS,
    ),
    streamed(
        "split within a value",
        "M test_streaming_single_tool_call, test_end_of_generation_tracking",
        [OPEN + '\n<invoke name="wind">\n<parameter name="bay">Kiel', "</parameter>\n</invoke>\n" + CLOSE],
        one("wind", bay="Kiel"),
        tools=TOOLS,
    ),
    streamed(
        "text, then a call",
        "M test_streaming_normal_text_before_tool, test_streaming_text_then_tool_call",
        ["I look it up. ", block(invoke("wind", bay="Kiel", scale="knots"))[1:]],
        one("wind", bay="Kiel", scale="knots"),
        "I look it up. ",
        tools=TOOLS,
    ),
    streamed(
        "text after in the same chunk",
        "M test_streaming_trailing_text_after_tool_call",
        [block(invoke("wind", bay="Kiel"))[1:] + " Ship ahoy"],
        one("wind", bay="Kiel"),
        " Ship ahoy",
        tools=TOOLS,
    ),
    streamed(
        "a partial marker at the end",
        "M test_streaming_partial_token_not_emitted",
        ["<minim"],
        content="<minim",
        differs="held back while it streams, as there; at the end of the text it is text",
    ),
    streamed(
        "a partial marker that completes",
        "M test_streaming_partial_token_completed",
        ["<minim", "ax:tool_call>\n" + invoke("wind", bay="Kiel") + "\n" + CLOSE],
        one("wind", bay="Kiel"),
        tools=TOOLS,
    ),
    Case(
        "newlines around a string",
        "M test_multi_newline_stripping",
        block(invoke("wind", bay="\n\nKiel\n\n"))[1:],
        one("wind", bay="\n\nKiel\n\n"),
        tools=TOOLS,
        differs=EXACT,
    ),
    Case(
        "an unknown tool",
        "M test_unknown_tool_filtered",
        block(invoke("nobody", bay="Kiel"))[1:],
        one("nobody", bay="Kiel"),
        tools=TOOLS,
        differs=UNKNOWN,
    ),
    said(
        "a number",
        "N test_normal_number_parses",
        '<invoke name="chart"><parameter name="area">Belt</parameter><parameter name="zoom">0.5</parameter></invoke>',
        one("chart", area="Belt", zoom=0.5),
    ),
    said(
        "a number too big",
        "N test_overflow_literal_does_not_crash_and_stays_valid_json; TestNonFiniteCoercion",
        '<invoke name="chart"><parameter name="zoom">1e999</parameter></invoke>',
        one("chart", zoom="1e999"),
    ),
    said(
        "not a number",
        "N test_nan_literal_stays_valid_json; TestNonFiniteCoercion",
        '<invoke name="chart"><parameter name="zoom">nan</parameter></invoke>',
        one("chart", zoom="nan"),
    ),
    Case(
        "a list that holds no number",
        "TestNonFiniteCoercion",
        block(invoke("mode", rows="[NaN]"))[1:],
        one("mode", rows="[NaN]"),
        tools=TOOLS,
    ),
    Case(
        "the same tool twice",
        "I test_parallel_same_tool_indices_single_shot, test_single_shot_matches_streaming_indices",
        block(invoke("wind", bay="Kiel"), invoke("wind", bay="Riga"))[1:],
        [("wind", {"bay": bay}) for bay in ("Kiel", "Riga")],
        tools=TOOLS,
    ),
    Case(
        "indices count calls",
        "I test_index_is_ordinal_not_registry_slot, test_forwarded_unknown_tool_gets_ordinal_index",
        block(invoke("chart", area="Belt"), invoke("nobody", bay="Kiel"), invoke("wind", bay="Riga"))[1:],
        [("chart", {"area": "Belt"}), ("nobody", {"bay": "Kiel"}), ("wind", {"bay": "Riga"})],
        tools=TOOLS,
    ),
    Case(
        "cut within a value",
        "F test_partial_tool_call_at_end_is_flushed",
        f'ahoy {OPEN}<invoke name="wind"><parameter name="bay">K',
        [],
        "ahoy ",
        tools=TOOLS,
        incomplete=Incomplete("call", 0, "wind", "bay", '{"bay": "K'),
        differs=CUT,
    ),
    Case(
        "nothing more at the end",
        "F test_clean_stream_finish_is_noop, test_complete_call_not_duplicated_at_finish",
        OPEN + KIEL + CLOSE,
        one("wind", bay="Kiel"),
        tools=TOOLS,
    ),
    streamed(
        "a call is closed before text",
        "C test_streaming_closes_tool_call_before_normal_text",
        ["see " + OPEN + KIEL, CLOSE + " done"],
        one("wind", bay="Kiel"),
        "see  done",
        tools=TOOLS,
    ),
    streamed(
        "a split within an invoke's marker",
        "C test_streaming_preserves_multi_invoke_tool_call_block",
        [
            "see " + OPEN + KIEL + "<in",
            'voke name="chart"><parameter name="area">Belt</parameter></invoke>' + CLOSE + " done",
        ],
        [("wind", {"bay": "Kiel"}), ("chart", {"area": "Belt"})],
        "see  done",
        tools=TOOLS,
    ),
    said(
        "junk within an invoke",
        "R test_skipped_garbage_inside_m2_invoke_recovers_and_records",
        '\n<invoke name="wind">\nJUNK of no tag\n<parameter name="bay">Kiel</parameter>\n</invoke>\n',
        one("wind", bay="Kiel"),
    ),
    streamed(
        "parameters of the same name in two invokes",
        "issue 23071, pull request 24995",
        [
            OPEN,
            '<invoke name="chart"><parameter name="area">A',
            '</parameter></invoke><invoke name="chart">',
            '<parameter name="area">B</parameter><parameter name="zoom">2</parameter>',
            "</invoke>" + CLOSE,
        ],
        [("chart", {"area": "A"}), ("chart", {"area": "B", "zoom": 2})],
        tools=TOOLS,
    ),
]
