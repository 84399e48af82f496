"""NVIDIA Dynamo: the fixtures batch.* and jail.* in frontend-crates conformance/toolcalling/fixtures/minimax_m2.

The batch files also note what vLLM and SGLang make of each.
"""

from __future__ import annotations

from completions import block, invoke, tool
from peer_cases.case import CUT, INTEGER, STRING, UNDECLARED, Case, one, streamed

from mm2c_runtime.parsing import Incomplete

OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
TOOLS = [tool("depth", {"where": STRING, "unit": STRING}), tool("gulls", {"text": STRING}), tool("noon")]
LAID = invoke("depth", where="fjord")
LAKE = invoke("depth", where="lake")
FJORD_CALL, LAKE_CALL = ("depth", {"where": "fjord"}), ("depth", {"where": "lake"})
SPACED = '<invoke name="depth"> <parameter name="where">fjord</parameter> </invoke>'
NO_BLOCK = "a call stands in a block: an invoke outside one is text that speaks of the format"
JUNK = "what is no invoke is content; the peer drops it"

CASES = [
    Case(
        "two invokes in a block",
        "batch.2.a, jail.2.a",
        block(LAID, invoke("gulls", text="x"))[1:],
        [FJORD_CALL, ("gulls", {"text": "x"})],
        tools=TOOLS,
    ),
    Case(
        "two blocks on lines",
        "batch.2.b, jail.2.b",
        block(LAID)[1:] + block(LAKE),
        [FJORD_CALL, LAKE_CALL],
        tools=TOOLS,
    ),
    Case(
        "calls within narration",
        "batch.2.c, jail.2.c",
        "Twice: " + block(LAID, LAKE)[1:] + " So be it.",
        [FJORD_CALL, LAKE_CALL],
        "Twice:  So be it.",
        tools=TOOLS,
    ),
    Case(
        "one name twice",
        "batch.2.d, jail.2.d, jail.10",
        block(LAID, LAKE)[1:],
        [FJORD_CALL, LAKE_CALL],
        tools=TOOLS,
    ),
    Case(
        "a block of garbage",
        "batch.4.a, jail.4.a",
        OPEN + "\nno such thing as a call\n" + CLOSE,
        [],
        "no such thing as a call\n",
        tools=TOOLS,
        differs=JUNK,
    ),
    Case(
        "an invoke without a name",
        "batch.4.c, jail.4.c",
        OPEN + '\n<invoke>\n<parameter name="where">fjord</parameter>\n</invoke>\n' + CLOSE,
        [],
        '<invoke>\n<parameter name="where">fjord</parameter>\n</invoke>\n',
        tools=TOOLS,
        differs=JUNK,
    ),
    Case(
        "no end of the invoke",
        "batch.4.d, jail.4.d",
        OPEN + '\n<invoke name="depth">\n<parameter name="where">fjord</parameter>\n' + CLOSE,
        tools=TOOLS,
        incomplete=Incomplete("call", 0, "depth", None, '{"where": "fjord"'),
    ),
    streamed(
        "no end of the block",
        "jail.5.a",
        [OPEN + " <invoke", ' name="depth">', ' <parameter name="where">fjord</parameter>', " </invoke>", ""],
        [FJORD_CALL],
        tools=TOOLS,
    ),
    streamed(
        "no beginning of the block",
        "jail.5.b",
        ['<invoke name="depth">', " <parameter", ' name="where">fjord</parameter> </invoke>', " " + CLOSE],
        [],
        f"{SPACED} {CLOSE}",
        tools=TOOLS,
        differs=NO_BLOCK,
    ),
    streamed(
        "cut in a value",
        "jail.5.c",
        [OPEN + " <invoke", ' name="depth">', ' <parameter name="where">fj'],
        tools=TOOLS,
        incomplete=Incomplete("call", 0, "depth", "where", '{"where": "fj'),
    ),
    streamed(
        "two calls, no end of the block",
        "jail.5.d",
        ["I", " sound", f" both! {OPEN}", " " + SPACED, " " + SPACED],
        [FJORD_CALL] * 2,
        "I sound both! ",
        tools=TOOLS,
    ),
    streamed(
        "two calls, the second cut in a value",
        "jail.5.e",
        [
            "I sound",
            f" both! {OPEN}",
            " " + SPACED + " <invoke",
            ' name="depth"> <parameter',
            ' name="where">la',
        ],
        [FJORD_CALL],
        "I sound both! ",
        tools=TOOLS,
        incomplete=Incomplete("call", 1, "depth", "where", '{"where": "la'),
    ),
    streamed(
        "a bare invoke before a block",
        "jail.5.f",
        [SPACED, f" {CLOSE} {OPEN}", " " + SPACED, " " + CLOSE],
        [FJORD_CALL],
        f"{SPACED} {CLOSE} ",
        tools=TOOLS,
        differs=NO_BLOCK,
    ),
    streamed(
        "narration, then a bare invoke",
        "jail.5.g",
        ["I will", " sound it. " + SPACED + " " + CLOSE],
        [],
        f"I will sound it. {SPACED} {CLOSE}",
        tools=TOOLS,
        differs=NO_BLOCK,
    ),
    streamed(
        "no parameters but space",
        "jail.6.a",
        [OPEN + " <invoke", ' name="noon">', " </invoke> " + CLOSE],
        one("noon"),
        tools=TOOLS,
    ),
    streamed(
        "empty lines in an invoke",
        "jail.6.b",
        [OPEN + " <invoke", ' name="noon">', "\n\n  </invoke> " + CLOSE],
        one("noon"),
        tools=TOOLS,
    ),
    streamed(
        "several parameters without a schema",
        "jail.7.a",
        [
            OPEN + " <invoke",
            ' name="berth">',
            ' <parameter name="pier">East</parameter>',
            ' <parameter name="boats">',
            "2</parameter>",
            ' <parameter name="night">',
            "true</parameter> </invoke> " + CLOSE,
        ],
        one("berth", pier="East", boats=2, night=True),
        differs=UNDECLARED,
    ),
    streamed(
        "letters outside ASCII",
        "jail.7.b",
        [
            OPEN + ' <invoke name="depth">',
            ' <parameter name="where">Åbo',
            " skärgård</parameter> </invoke>",
            " " + CLOSE,
        ],
        one("depth", where="Åbo skärgård"),
        tools=TOOLS,
    ),
    streamed(
        "an integer beyond a float's precision",
        "jail.7.f",
        [
            OPEN + ' <invoke name="berth">',
            ' <parameter name="boats">9007199254740993</parameter>',
            " </invoke> " + CLOSE,
        ],
        one("berth", boats=9007199254740993),
        tools=[tool("berth", {"boats": INTEGER})],
    ),
    Case(
        "narration before",
        "batch.8.a",
        "I sound it. " + block(LAID)[1:],
        [FJORD_CALL],
        "I sound it. ",
        tools=TOOLS,
    ),
    Case(
        "narration after",
        "batch.8.b",
        block(LAID)[1:] + " Ask for more.",
        [FJORD_CALL],
        " Ask for more.",
        tools=TOOLS,
    ),
    Case(
        "narration around",
        "batch.8.c",
        "I sound it. " + block(LAID)[1:] + " Ask for more.",
        [FJORD_CALL],
        "I sound it.  Ask for more.",
        tools=TOOLS,
    ),
    Case(
        "narration between",
        "batch.8.d",
        "I sound it. " + block(LAID)[1:] + " Then the lake. " + block(LAKE)[1:],
        [FJORD_CALL, LAKE_CALL],
        "I sound it.  Then the lake. ",
        tools=TOOLS,
    ),
    streamed("nothing", "D jail.9.a", ["", ""]),
    Case("space alone", "D jail.9.b", "   ", content="   "),
    streamed(
        "another format's tags in a block",
        "jail.13",
        [
            f"{OPEN} <minimax:tool_name>",
            "nobody</minimax:tool_name>",
            ' <minimax:tool_args>{"where":"x"}</minimax:tool_args> ' + CLOSE,
        ],
        [],
        '<minimax:tool_name>nobody</minimax:tool_name> <minimax:tool_args>{"where":"x"}</minimax:tool_args> ',
        tools=TOOLS,
        differs=JUNK,
    ),
    streamed(
        "splits within every marker",
        "jail.50",
        [
            "<m",
            "ini",
            "max:t",
            "ool_call> <",
            'invoke name="dep',
            "t",
            "h",
            '"> <p',
            "arameter na",
            'me="where">fjord</',
            "pa",
            "ram",
            "eter>",
            " </invoke> ",
            "</minimax:tool_call",
            ">",
        ],
        [FJORD_CALL],
        tools=TOOLS,
    ),
    Case(
        "the end of the block in a value",
        "frontend-crates pull request 245",
        f'{OPEN}<invoke name="depth"><parameter name="where">Malmö {CLOSE} café</parameter></invoke>{CLOSE}',
        one("depth", where=f"Malmö {CLOSE} café"),
        tools=TOOLS,
    ),
    Case(
        "a cut call as vLLM is said to show it",
        "batch.4.d (its note on vLLM)",
        OPEN + '<invoke name="depth">',
        tools=TOOLS,
        incomplete=Incomplete("call", 0, "depth"),
        differs=CUT,
    ),
]
