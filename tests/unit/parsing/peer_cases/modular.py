"""MAX: the tests of its ``minimax_m2`` tool parser, and the envelopes of its grammar tests (GOOD_…, BAD_…)."""

from __future__ import annotations

from completions import block, invoke
from peer_cases.case import EXACT, TEXT_KEPT, VERBATIM, Case, one, streamed

from mm2c_runtime.parsing import Incomplete

OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
SHOAL = '<invoke name="sounding"><parameter name="spot">shoal</parameter></invoke>'
LETTER = "Dear keeper,\n\nthe lamp — the old one — burns 18 % brighter (0.71 → 0.84).\n\nYours,\nthe watch"
FILTERS = {"span": {"from": "June", "to": "July"}, "kinds": ["cod", "eel"], "least": 0.8}


def laid_out(*invokes: str) -> str:
    return block(*invokes)[1:]


CASES = [
    Case(
        "one call",
        "test_single_tool_call_parsing; GOOD 02_two_string_args",
        laid_out(invoke("sounding", spot="North Rock", unit="fathoms")),
        one("sounding", spot="North Rock", unit="fathoms"),
    ),
    Case(
        "two calls",
        "test_multiple_tool_calls_parsing; GOOD 07_two_invokes_different_functions",
        laid_out(invoke("sounding", spot="shoal"), invoke("clock", zone="GMT")),
        [("sounding", {"spot": "shoal"}), ("clock", {"zone": "GMT"})],
    ),
    Case(
        "no call",
        "test_response_without_tool_calls",
        "A plain answer without any call.",
        content="A plain answer without any call.",
    ),
    Case("nothing", "test_empty_response", ""),
    Case(
        "content before",
        "test_content_before_tool_calls",
        "I take a sounding.\n\n" + laid_out(SHOAL),
        one("sounding", spot="shoal"),
        "I take a sounding.\n",
        differs=VERBATIM,
    ),
    Case(
        "names in double quotes",
        "test_quoted_function_name, test_response_structure; GOOD 01_single_string_arg",
        laid_out(invoke("read_log", topic="fog signals")),
        one("read_log", topic="fog signals"),
    ),
    Case(
        "names in single quotes",
        "test_single_quoted_function_name",
        laid_out("<invoke name='sum'>\n<parameter name='terms'>3 + 4</parameter>\n</invoke>"),
        one("sum", terms="3 + 4"),
    ),
    Case(
        "names in no quotes",
        "test_unquoted_function_name",
        laid_out("<invoke name=any_fish>\n<parameter name=kind>flat</parameter>\n</invoke>"),
        one("any_fish", kind="flat"),
    ),
    Case(
        "nested objects",
        "test_complex_parameters; GOOD 05_nested_json_arg",
        laid_out(
            '<invoke name="catch">\n<parameter name="filters">{"span": {"from": "June", "to": "July"}, '
            '"kinds": ["cod", "eel"], "least": 0.8}</parameter>\n<parameter name="full">true</parameter>\n</invoke>'
        ),
        one("catch", filters=FILTERS, full=True),
    ),
    Case(
        "no parameters",
        "test_empty_parameters; GOOD 03_no_arg_call",
        laid_out('<invoke name="any_fish">\n</invoke>'),
        one("any_fish"),
    ),
    Case(
        "no end of the block",
        "test_tool_calls_section_without_end_tag; BAD_01_missing_end_tag",
        laid_out(SHOAL).removesuffix(CLOSE),
        one("sounding", spot="shoal"),
    ),
    Case(
        "an empty block",
        "test_empty_tool_calls_section_raises_error",
        OPEN + "\n" + CLOSE,
        differs="nothing raises: a block without a call says nothing",
    ),
    Case(
        "space around a value",
        "test_whitespace_handling",
        laid_out(
            '<invoke name="t">\n<parameter name="key">   wide   </parameter>\n'
            '<parameter name="deep">{"a": "b"}</parameter>\n</invoke>'
        ),
        one("t", key="   wide   ", deep={"a": "b"}),
        differs=EXACT,
    ),
    Case(
        "special characters",
        "test_special_characters_in_arguments",
        laid_out(
            '<invoke name="t">\n<parameter name="code">say("Ahoy, mate!")</parameter>\n'
            '<parameter name="pattern">\\d+\\.\\d+</parameter>\n<parameter name="sign">海</parameter>\n</invoke>'
        ),
        one("t", code='say("Ahoy, mate!")', pattern="\\d+\\.\\d+", sign="海"),
    ),
    Case(
        "the same tool three times",
        "test_multiple_tool_calls_same_function",
        laid_out(*(invoke("find", what=f"item {n}.") for n in range(3))),
        [("find", {"what": f"item {n}."}) for n in range(3)],
    ),
    Case(
        "scalars",
        "test_numeric_parameter_values",
        laid_out(
            '<invoke name="set">\n<parameter name="n">5</parameter>\n<parameter name="x">0.75</parameter>\n'
            '<parameter name="on">true</parameter>\n<parameter name="label">some_text</parameter>\n</invoke>'
        ),
        one("set", n=5, x=0.75, on=True, label="some_text"),
    ),
    streamed(
        "one element a chunk",
        "test_parse_delta_single_tool_call_streaming",
        [OPEN, '<invoke name="sounding">', '<parameter name="spot">shoal</parameter>', "</invoke>", CLOSE],
        one("sounding", spot="shoal"),
    ),
    streamed(
        "two calls in one delta",
        "test_parse_delta_multiple_tool_calls_streaming",
        [laid_out(invoke("sounding", spot="shoal"), invoke("clock", zone="GMT"))],
        [("sounding", {"spot": "shoal"}), ("clock", {"zone": "GMT"})],
    ),
    streamed(
        "content in a chunk of its own",
        "test_parse_delta_with_content_before_tools",
        ["I take it for you.\n\n", OPEN, SHOAL, CLOSE],
        one("sounding", spot="shoal"),
        "I take it for you.\n",
        differs=VERBATIM,
    ),
    streamed(
        "a parameter a chunk",
        "test_parse_delta_argument_diffing",
        [
            OPEN,
            '<invoke name="t">',
            '<parameter name="a">1</parameter>',
            '<parameter name="b">2</parameter>',
            "</invoke>",
        ],
        one("t", a=1, b=2),
    ),
    streamed(
        "a marker in two chunks",
        "test_parse_delta_accumulates, test_parse_delta_partial_marker_handling",
        ["Ahoy there<minimax:", "tool_call>"],
        [],
        "Ahoy there",
        incomplete=Incomplete("block"),
    ),
    streamed(
        "splits within every tag",
        "test_parse_delta_mid_token_splits",
        [
            "<minimax:tool_",
            "call>",
            "<invoke na",
            'me="soun',
            'ding">',
            "<parameter",
            ' name="sp',
            'ot">North',
            " Rock</para",
            "meter>",
            "</inv",
            "oke>",
            CLOSE,
        ],
        one("sounding", spot="North Rock"),
    ),
    Case(
        "an invoke behind the block",
        "test_parse_delta_ignores_invoke_after_end_tag",
        OPEN + SHOAL + CLOSE + '<invoke name="x"><parameter name="y">z</parameter></invoke>',
        one("sounding", spot="shoal"),
        '<invoke name="x"><parameter name="y">z</parameter></invoke>',
        differs=TEXT_KEPT,
    ),
    Case(
        "two blocks",
        "test_parse_delta_multiple_tool_call_blocks",
        OPEN + SHOAL + CLOSE + OPEN + SHOAL + CLOSE,
        [("sounding", {"spot": "shoal"})] * 2,
    ),
    streamed(
        "text in chunks",
        "test_parse_delta_no_tool_calls",
        ["Ahoy, ", "a plain ", "answer."],
        content="Ahoy, a plain answer.",
    ),
    streamed(
        "text behind the block",
        "test_parse_delta_no_content_after_end_tag",
        [OPEN, SHOAL, CLOSE, "more to say"],
        one("sounding", spot="shoal"),
        "more to say",
        differs=TEXT_KEPT,
    ),
    Case(
        "space before the block",
        "test_parse_complete_whitespace_only_before_tool_calls",
        "\n\n" + laid_out('<invoke name="ping">\n</invoke>'),
        one("ping"),
        "\n",
        differs=VERBATIM,
    ),
    streamed(
        "no parameters, streamed",
        "test_parse_delta_streaming_empty_invoke",
        [OPEN, '<invoke name="ping">', "</invoke>", CLOSE],
        one("ping"),
    ),
    Case(
        "the end of the block in a value",
        "test_parse_delta_section_end_lookalike_in_parameter_value (known to fail there)",
        f'{OPEN}<invoke name="write"><parameter name="text">then comes {CLOSE} last</parameter></invoke>{SHOAL}{CLOSE}',
        [("write", {"text": f"then comes {CLOSE} last"}), ("sounding", {"spot": "shoal"})],
    ),
    Case(
        "a long value",
        "GOOD 04_large_args",
        laid_out(invoke("post", to="keeper@rock", body=LETTER)),
        one("post", to="keeper@rock", body=LETTER),
    ),
    Case(
        "quotes within JSON",
        "GOOD 06_two_invokes_same_function",
        laid_out(
            *(
                f'<invoke name="find">\n<parameter name="kinds">["shore", "life"]</parameter>\n'
                f'<parameter name="words">["\\"{what}\\" \\"young\\""]</parameter>\n</invoke>'
                for what in ("cod", "eel")
            )
        ),
        [("find", {"kinds": ["shore", "life"], "words": [f'"{what}" "young"']}) for what in ("cod", "eel")],
    ),
    Case(
        "quotes and ampersands",
        "GOOD 10_string_arg_with_special_chars",
        laid_out(invoke("hail", words='Ahoy "mate" & farewell')),
        one("hail", words='Ahoy "mate" & farewell'),
    ),
    Case(
        "no end of the invoke",
        "BAD_02_missing_invoke_end",
        OPEN + '\n<invoke name="sounding">\n<parameter name="spot">shoal</parameter>\n' + CLOSE,
        incomplete=Incomplete("call", 0, "sounding", None, '{"spot": "shoal"'),
    ),
    Case(
        "an unknown tag in an invoke",
        "BAD_03_unknown_tag_inside",
        OPEN
        + '\n<invoke name="sounding">\n<parameter name="spot">shoal</parameter>\n  <odd>x</odd>\n</invoke>\n'
        + CLOSE,
        one("sounding", spot="shoal"),
        differs="the parser passes over it; our grammar forbids it too",
    ),
    Case(
        "text right before a block",
        "BAD_04_garbage_prefix",
        "TEXT BEFORE" + laid_out(SHOAL),
        one("sounding", spot="shoal"),
        "TEXT BEFORE",
        differs="content for the parser; our grammar forbids it too",
    ),
    Case(
        "an invoke without a name",
        "BAD_05_malformed_attribute",
        OPEN + '\n<invoke name=>\n<parameter name="spot">shoal</parameter>\n</invoke>\n' + CLOSE,
        [],
        '<invoke name=>\n<parameter name="spot">shoal</parameter>\n</invoke>\n',
        differs="text for the parser; our grammar forbids it too",
    ),
]
