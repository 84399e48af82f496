"""vLLM's Python tool parsers. Files, shortened in ``test``:

T: tests/tool_parsers/test_minimax_m2_tool_parser.py; U: tests/tool_use/test_minimax_m2_tool_parser.py;
E: tests/parser/engine/test_minimax_m2.py.
"""

from __future__ import annotations

from completions import tool
from peer_cases.case import BOOLEAN, INTEGER, STRING, TEXT_KEPT, UNDECLARED, UNKNOWN, Case, one, streamed

NICKNAME = {"anyOf": [STRING, {"type": "null"}]}
LAYOUT = {"anyOf": [{"type": "object"}, {"type": "null"}]}
KEEPER = [tool("keeper", {"alias": NICKNAME, "layout": LAYOUT})]
TIDES = [tool("tides", {"hours": INTEGER, "graph": BOOLEAN, "port": STRING})]
OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
PORT = '<invoke name="tides"><parameter name="port">Brest</parameter></invoke>'

CASES = [
    streamed(
        "plain content", "T TestContentStreaming.test_plain_content", ["Calm ", "seas"], content="Calm seas"
    ),
    streamed(
        "content before a call",
        "T TestContentStreaming.test_content_before_tool_call",
        ["I look it up. ", OPEN + PORT + CLOSE],
        one("tides", port="Brest"),
        "I look it up. ",
    ),
    streamed("an empty delta", "T TestContentStreaming.test_empty_delta_no_crash", [""]),
    streamed(
        "one element a chunk",
        "T TestSingleInvoke.test_incremental_chunks; E TestStreaming.test_streaming_single_tool_call",
        [OPEN, '<invoke name="tides">', '<parameter name="port">Brest</parameter>', "</invoke>" + CLOSE],
        one("tides", port="Brest"),
    ),
    streamed(
        "a value in a chunk of its own",
        "U test_extract_tool_calls_streaming_incremental",
        [OPEN, '<invoke name="tides">', '<parameter name="port">', "Brest</parameter>", "</invoke>" + CLOSE],
        one("tides", port="Brest"),
    ),
    Case(
        "one call at once",
        "T TestSingleInvoke.test_single_chunk_complete; E TestNonStreaming.test_single_tool_call",
        OPEN + PORT + CLOSE,
        one("tides", port="Brest"),
    ),
    streamed(
        "several parameters without a schema",
        "T TestSingleInvoke.test_multiple_params; T TestLargeChunks.test_header_and_params_in_separate_chunks",
        [
            OPEN + '<invoke name="tides">',
            '<parameter name="port">Brest</parameter><parameter name="hours">5</parameter></invoke>' + CLOSE,
            "",
        ],
        one("tides", port="Brest", hours=5),
        differs=UNDECLARED,
    ),
    streamed(
        "two invokes, a chunk each",
        "T TestMultipleInvokes.test_two_invokes_incremental, test_different_functions; "
        "E TestStreaming.test_streaming_multiple_invokes",
        [OPEN, PORT, '<invoke name="moon"><parameter name="month">May</parameter></invoke>', CLOSE],
        [("tides", {"port": "Brest"}), ("moon", {"month": "May"})],
    ),
    streamed(
        "two invokes in one delta",
        "T TestMultipleInvokes.test_two_invokes_in_single_delta; "
        "T TestDeltaMessageFormat.test_multi_invoke_indices; E TestNonStreaming.test_multiple_invokes",
        [OPEN, PORT + PORT, CLOSE],
        [("tides", {"port": "Brest"})] * 2,
    ),
    streamed(
        "the end token without text",
        "T TestEOSHandling.test_eos_after_tool_calls, test_end_token_ignored",
        [OPEN, PORT, CLOSE, ""],
        one("tides", port="Brest"),
    ),
    Case(
        "a nullable string with a value",
        "T TestAnyOfNullableParam.test_anyof_nullable_param_non_null_value",
        f'{OPEN}<invoke name="keeper"><parameter name="alias">Marit</parameter></invoke>{CLOSE}',
        one("keeper", alias="Marit"),
        tools=KEEPER,
    ),
    Case(
        "a nullable string that is null",
        "T TestAnyOfNullableParam.test_anyof_nullable_param_null_value",
        f'{OPEN}<invoke name="keeper"><parameter name="alias">null</parameter></invoke>{CLOSE}',
        one("keeper", alias=None),
        tools=KEEPER,
    ),
    Case(
        "a nullable object",
        "T TestAnyOfNullableParam.test_anyof_nullable_param_object_value",
        f'{OPEN}<invoke name="keeper"><parameter name="layout">{{"rows": 3, "lamp": "red"}}</parameter>'
        f"</invoke>{CLOSE}",
        one("keeper", layout={"rows": 3, "lamp": "red"}),
        tools=KEEPER,
    ),
    streamed(
        "lists as arguments of two calls",
        "U test_streaming_minimax_m2_multiple_invokes",
        [
            OPEN,
            *(
                piece
                for what in ("kelp", "crab")
                for piece in (
                    '<invoke name="shelf">',
                    '<parameter name="labels">',
                    '["shore", "life"]</parameter>',
                    '<parameter name="words">',
                    f'["{what}", "at low tide"]</parameter>',
                    "</invoke>",
                )
            ),
            CLOSE,
        ],
        [
            ("shelf", {"labels": ["shore", "life"], "words": [what, "at low tide"]})
            for what in ("kelp", "crab")
        ],
    ),
    streamed(
        "more attributes in the tags",
        "U test_streaming_with_extra_attributes_in_tags",
        [
            OPEN,
            '<invoke name="row" description="Move the boat">',
            '<parameter name="course" type="string">',
            "north -by east</parameter>",
            "</invoke>" + CLOSE,
        ],
        one("row", course="north -by east"),
    ),
    Case(
        "more attributes with parentheses",
        "U test_non_streaming_with_extra_attributes",
        f'{OPEN}<invoke name="row" note="skip"><parameter name="a" type="string">port</parameter>'
        f'<parameter name="b" description="(e.g. slow)">bow</parameter></invoke>{CLOSE}',
        one("row", a="port", b="bow"),
    ),
    streamed(
        "parentheses in a value",
        "U test_streaming_with_parentheses_in_value",
        [
            OPEN,
            '<invoke name="row">',
            '<parameter name="course">',
            "inshore (e.g. past the mole, then west)</parameter>",
            "</invoke>" + CLOSE,
        ],
        one("row", course="inshore (e.g. past the mole, then west)"),
    ),
    Case(
        "no call after reasoning",
        "E TestNonStreaming.test_no_tool_calls",
        "</think>The sea is calm today.",
        content="The sea is calm today.",
        starts_in_reasoning=True,
    ),
    streamed(
        "the last parameter not closed",
        "E TestNonStreaming.test_unclosed_last_parameter_is_preserved, "
        "TestStreaming.test_streaming_unclosed_last_parameter_is_preserved",
        [
            OPEN,
            '<invoke name="tides">',
            '<parameter name="port">Brest</parameter>',
            '<parameter name="unit">feet',
            "</invoke>" + CLOSE,
        ],
        one("tides", port="Brest", unit="feet"),
    ),
    Case(
        "types by the schema",
        "E TestNonStreaming.test_schema_type_coercion",
        f'{OPEN}<invoke name="tides"><parameter name="hours">6</parameter><parameter name="graph">true</parameter>'
        f"</invoke>{CLOSE}",
        one("tides", hours=6, graph=True),
        tools=TIDES,
    ),
    streamed(
        "an unknown tool",
        "E TestNonStreaming.test_invalid_tool_name_is_rejected, "
        "TestStreaming.test_streaming_invalid_tool_name_is_rejected",
        [OPEN, '<invoke name="paint">', '<parameter name="motif">a gull</parameter>', "</invoke>" + CLOSE],
        one("paint", motif="a gull"),
        tools=TIDES,
        differs=UNKNOWN,
    ),
    Case(
        "an unknown tool before a known one",
        "E TestNonStreaming.test_mixed_tool_names_only_return_valid",
        f'{OPEN}<invoke name="paint"><parameter name="motif">gull</parameter></invoke>{PORT}{CLOSE}',
        [("paint", {"motif": "gull"}), ("tides", {"port": "Brest"})],
        tools=TIDES,
        differs=UNKNOWN,
    ),
    streamed(
        "a split before the quote of a name",
        "E TestStreaming.test_streaming_invoke_prefix_split_before_quote",
        [OPEN, "<invoke name=", '"tides">', '<parameter name="port">Brest</parameter>', "</invoke>" + CLOSE],
        one("tides", port="Brest"),
    ),
    Case(
        "a value with the end of a parameter in it",
        "pull request 38803, issue 44060",
        f'{OPEN}<invoke name="row"><parameter name="course">past </parameter> the mole</parameter>'
        f'<parameter name="a">1</parameter></invoke>{CLOSE}',
        one("row", course="past ", a=1),
        differs="the format escapes nothing, so </parameter> always ends a value; the pull request guesses "
        "at the last one, which would swallow the parameters between",
    ),
    Case(
        "a parameter's name with > in it",
        "pull request 38803",
        f'{OPEN}<invoke name="row"><parameter name="speed>5">slow</parameter></invoke>{CLOSE}',
        one("row", **{"speed>5": "slow"}),
    ),
    Case(
        "text after a call",
        "rust/src/parser/src/tool/minimax_m2.rs "
        "minimax_m2_parse_complete_preserves_prefix_and_ignores_trailing_text, "
        "minimax_m2_streaming_ignores_text_after_tool_block",
        f"I look. {OPEN}{PORT}{CLOSE} High water soon.",
        one("tides", port="Brest"),
        "I look.  High water soon.",
        differs=TEXT_KEPT,
    ),
]
