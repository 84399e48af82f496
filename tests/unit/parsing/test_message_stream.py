"""The rules of reading a completion, one by one; each example also streamed in pieces of one and three."""

from __future__ import annotations

import json

import pytest
from completions import arguments, assert_same, block, chunks, invoke, joined, stream, streamed_calls, tool

from mm2c_runtime.parsing import Incomplete, Message, MessageStream, parse_message

TOOLS = [
    tool("f", {"s": {"type": "string"}, "t": {"type": "string"}, "n": {"type": "integer"}}),
    tool("g", {"o": {"type": "object"}}),
]


def read(text: str, *, starts_in_reasoning: bool = False) -> Message:
    message = parse_message(text, TOOLS, starts_in_reasoning=starts_in_reasoning)
    for size in (1, 3):
        pieces = chunks(text, [size])
        assert_same(stream(pieces, TOOLS, starts_in_reasoning=starts_in_reasoning), message)
    return message


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("why\n</think>\n\nso", "why", "so"),
        ("why</think>so", "why", "so"),
        ("</think>\n\nso", "", "so"),
        ("\n</think>\n\nso", "", "so"),
        ("a\n\n</think>\n\n\n\nso\n", "a\n", "\n\nso\n"),
        ("why </think> \tso", "why ", " \tso"),
        ("<think> why\n</think>\n so", " why", " so"),
        ("<think>\nwhy\n</think>\n\nso", "why", "so"),
        ("why <think> twice</think>so", "why <think> twice", "so"),
        ("why\n</think>\n\n<think>\nmore\n</think>\n\nso", "whymore", "so"),
        ("never ends </thin", "never ends </thin", ""),
        ("r</think>a</think>b", "r", "ab"),
        ("r</think>the <think> tag", "r", "the <think> tag"),
        ("", "", ""),
    ],
)
def test_reasoning_ends_at_its_marker(text: str, reasoning: str, content: str) -> None:
    assert read(text, starts_in_reasoning=True) == Message(reasoning, content)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nwhy\n</think>\n\nso", "why", "so"),
        ("so</think> it is", "", "so it is"),
        ("so <think> it is", "", "so <think> it is"),
        ("\n so\n", "", "\n so\n"),
        ("<invoke> and </minimax:tool_call> are text", "", "<invoke> and </minimax:tool_call> are text"),
        ("a <minimax:tool_cal", "", "a <minimax:tool_cal"),
    ],
)
def test_without_reasoning_only_an_opener_begins_it(text: str, reasoning: str, content: str) -> None:
    assert read(text) == Message(reasoning, content)


def test_reasoning_ends_at_a_block_which_stays() -> None:
    message = read("I call it" + block(invoke("f", s="x")) + "</think>done", starts_in_reasoning=True)
    assert message.reasoning == "I call it"
    assert message.content == "done"
    assert arguments(message) == [("f", {"s": "x"})]


def test_text_before_between_and_after_blocks_is_content() -> None:
    text = "a\n" + block(invoke("f", n="1"), invoke("f", n="2")) + "b" + block(invoke("g", o="{}")) + "\nc"
    message = read(text)
    assert message.content == "a\nb\nc"
    assert arguments(message) == [("f", {"n": 1}), ("f", {"n": 2}), ("g", {"o": {}})]
    assert [call.index for call in message.tool_calls] == [0, 1, 2]
    assert len({call.id for call in message.tool_calls}) == 3


def test_stray_text_in_a_block_is_content_and_space_is_not() -> None:
    message = read(f"<minimax:tool_call>\n\n Sure:\n{invoke('f', n='1')}\n\n</invoke> </minimax:tool_call>")
    assert message.content == "Sure:\n"
    assert arguments(message) == [("f", {"n": 1})]


def test_a_mentioned_marker_does_not_swallow_the_text() -> None:
    message = read("Use <minimax:tool_call> to call <invoke > things.")
    assert message.content == "Use to call <invoke > things."
    assert message.incomplete is None


@pytest.mark.parametrize(
    "value", ["", " x ", "\n x\n", '"x"', "a\\n\\", "5", "null", "&lt;", "é😀\u2028\x00\x7f"]
)
def test_a_declared_string_is_the_exact_text(value: str) -> None:
    assert arguments(read(block(invoke("f", s=value)))) == [("f", {"s": value})]


@pytest.mark.parametrize(
    "value",
    [
        "</invoke>",
        '</invoke>\n<invoke name="g">\n<parameter name="o">{}',
        "</minimax:tool_call>",
        "<minimax:tool_call></think><think>",
        "</parameter",
        "</Parameter>",
        "< /parameter>",
    ],
)
def test_only_the_end_of_a_parameter_closes_a_value(value: str) -> None:
    assert arguments(read(block(invoke("f", s=value, t="y")))) == [("f", {"s": value, "t": "y"})]


def test_where_no_parameter_ends_the_end_of_the_invoke_closes_values() -> None:
    text = '<minimax:tool_call><invoke name="f"><parameter name="s">x</invoke>'
    text += '<invoke name="f"><parameter name="n"> 5 </invoke></minimax:tool_call>bye'
    message = read(text)
    assert arguments(message) == [("f", {"s": "x"}), ("f", {"n": 5})]
    assert message.content == "bye"
    assert message.incomplete is None


def test_the_last_of_a_repeated_parameter_wins() -> None:
    text = block(
        '<invoke name="f"><parameter name="s">x</parameter><parameter name="s">y</parameter></invoke>'
    )
    assert parse_message(text, TOOLS).tool_calls[0].arguments == '{"s": "y"}'
    assert streamed_calls(stream([text], TOOLS)) == {0: ("f", '{"s": "x", "s": "y"}')}
    assert arguments(read(text)) == [("f", {"s": "y"})]


def test_unknown_tools_and_undeclared_parameters_are_kept() -> None:
    message = read(block(invoke("nobody", a="text", b="[1]"), invoke("f", more="true", s="true")))
    assert arguments(message) == [("nobody", {"a": "text", "b": [1]}), ("f", {"more": True, "s": "true"})]


def test_a_call_without_parameters() -> None:
    assert [call.arguments for call in read(block(invoke("f"))).tool_calls] == ["{}"]
    assert streamed_calls(stream([block(invoke("f"))])) == {0: ("f", "{}")}


@pytest.mark.parametrize("end", ["", "\n", "\n<", "\n</minimax:tool_ca"])
def test_a_missing_end_of_the_block_keeps_the_call(end: str) -> None:
    message = read(f"<minimax:tool_call>\n{invoke('f', n='1')}{end}")
    assert arguments(message) == [("f", {"n": 1})]
    assert message.content == ""
    assert message.incomplete is None


@pytest.mark.parametrize(
    ("text", "incomplete"),
    [
        ("<minimax:tool_call>", Incomplete("block")),
        ("<minimax:tool_call>\n\n", Incomplete("block")),
        ("<minimax:tool_call>\n<inv", Incomplete("call")),
        ('<minimax:tool_call>\n<invoke name="get', Incomplete("call")),
        ('<minimax:tool_call>\n<invoke name="f">\n', Incomplete("call", 0, "f")),
        ('<minimax:tool_call><invoke name="f"><parameter name="s', Incomplete("call", 0, "f")),
        (
            '<minimax:tool_call><invoke name="f"><parameter name="s">x</par',
            Incomplete("call", 0, "f", "s", '{"s": "x'),
        ),
        (
            '<minimax:tool_call><invoke name="f"><parameter name="n">1',
            Incomplete("call", 0, "f", "n", '{"n": '),
        ),
        (
            '<minimax:tool_call><invoke name="f"><parameter name="s">x</parameter>',
            Incomplete("call", 0, "f", None, '{"s": "x"'),
        ),
        (
            '<minimax:tool_call><invoke name="f"><parameter name="s">x</parameter></minimax:tool_call>',
            Incomplete("call", 0, "f", None, '{"s": "x"'),
        ),
    ],
)
def test_a_cut_call_is_never_whole(text: str, incomplete: Incomplete) -> None:
    message = read(text)
    assert message == Message(incomplete=incomplete)


def test_a_call_after_one_that_never_ended_keeps_its_own_index() -> None:
    text = '<minimax:tool_call><invoke name="f"><parameter name="s">x</parameter>' + invoke("f", n="2")
    message = read(text + "</minimax:tool_call>")
    assert [(call.index, call.arguments) for call in message.tool_calls] == [(1, '{"n": 2}')]
    assert message.incomplete == Incomplete("call", 0, "f", None, '{"s": "x"')


def test_every_prefix_of_a_call_is_incomplete_until_its_end() -> None:
    text = block(invoke("f", s="x y", n="12"))
    end = text.index("</invoke>") + len("</invoke>")
    start = text.index(">") + 1
    for stop in range(start, len(text) + 1):
        message = read(text[:stop])
        assert (len(message.tool_calls), message.incomplete is None) == (
            (1, True) if stop >= end else (0, False)
        )


def test_a_string_value_streams_as_it_grows() -> None:
    parser = MessageStream(TOOLS, starts_in_reasoning=False)
    parser.feed('<minimax:tool_call>\n<invoke name="f">\n<parameter name="s">')
    assert [joined(parser.feed(piece), "arguments") for piece in ("ab", 'c"', "\n<", "/pa", "x", "\\")] == [
        "ab",
        'c\\"',
        "\\n",
        "",
        "</pax",
        "\\\\",
    ]


@pytest.mark.parametrize(
    ("schema", "grows"),
    [
        ({"type": "string"}, True),
        ({"type": ["string"]}, True),
        ({"$ref": "#/$defs/text"}, True),
        ({"allOf": [{"type": ["string", "null"]}, {"$ref": "#/$defs/text"}]}, True),
        ({"anyOf": [{"type": "string"}, {"enum": ["a"]}]}, True),
        ({"enum": ["a", "b"]}, True),
        ({"const": "a"}, True),
        ({"type": "string", "nullable": True}, False),
        ({"anyOf": [{"$ref": "#/$defs/text"}, {"type": "null"}]}, False),
        ({"type": ["string", "integer"]}, False),
        ({"enum": ["a", 1]}, False),
        ({}, False),
    ],
)
def test_what_can_only_be_a_string_streams_as_it_grows(schema: object, grows: bool) -> None:
    tools = [tool("f", {"s": schema}, **{"$defs": {"text": {"type": "string"}}})]
    parser = MessageStream(tools, starts_in_reasoning=False)
    parser.feed('<minimax:tool_call>\n<invoke name="f">\n<parameter name="s">')
    assert joined(parser.feed("some text"), "arguments") == ("some text" if grows else "")


def test_other_values_wait_for_their_end() -> None:
    parser = MessageStream(TOOLS, starts_in_reasoning=False)
    parser.feed('<minimax:tool_call>\n<invoke name="g">\n<parameter name="o">')
    assert parser.feed(' {"a": ') == []
    assert joined(parser.feed("1.50} </parameter>"), "arguments") == '{"a": 1.50}'


def test_text_is_withheld_from_an_invoke_end_inside_a_value() -> None:
    parser = MessageStream(TOOLS, starts_in_reasoning=False)
    parser.feed('<minimax:tool_call>\n<invoke name="f">\n<parameter name="s">a')
    assert parser.feed("</invoke> b") == []
    assert joined(parser.feed(" c</parameter>"), "arguments") == '</invoke> b c"'


def test_an_invoke_end_inside_the_value_of_a_cut_completion_ends_nothing() -> None:
    text = '<minimax:tool_call>\n<invoke name="f">\n<parameter name="s">write "</invoke>" and'
    by_itself = parse_message(text, TOOLS, starts_in_reasoning=False)
    assert arguments(by_itself) == [("f", {"s": 'write "'})]
    message = parse_message(text, TOOLS, starts_in_reasoning=False, cut=True)
    assert message.tool_calls == []
    assert message.incomplete is not None
    assert (message.incomplete.name, message.incomplete.parameter) == ("f", "s")
    for pieces in ([text], list(text)):
        deltas = stream(pieces, TOOLS, starts_in_reasoning=False, cut=True)
        assert_same(deltas, message)
        assert joined(deltas, "arguments") == '{"s": "write \\"</invoke>\\" and'


def test_a_stream_takes_nothing_after_its_end() -> None:
    parser = MessageStream(starts_in_reasoning=False)
    parser.feed("a")
    assert parser.finish() == []
    assert parser.feed("b") == []
    assert parser.finish() == []
    assert parser.message == Message(content="a")


def test_a_surrogate_pair_split_between_chunks_is_one_character() -> None:
    pieces = ['<minimax:tool_call><invoke name="f"><parameter name="s">\ud83d', "\ude00</parameter></invoke>"]
    _, text = streamed_calls(stream(pieces, TOOLS, starts_in_reasoning=False))[0]
    text.encode()
    assert json.loads(text) == {"s": "😀"}


@pytest.mark.parametrize(
    "tools", [3, "f", [None, 3, {}], [{"function": 3}], [{"name": ["f"]}], {"name": "f"}]
)
def test_what_is_no_tool_definition_is_passed_over(tools: object) -> None:
    assert arguments(parse_message(block(invoke("f", s="1")), tools)) == [("f", {"s": 1})]
