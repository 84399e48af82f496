"""The names in the tags of invokes and parameters, streamed in pieces of one and three too."""

from __future__ import annotations

import pytest
from completions import arguments, assert_same, block, chunks, stream, tool

from mm2c_runtime.parsing import Message, parse_message


def read(text: str) -> Message:
    message = parse_message(text, starts_in_reasoning=False)
    for size in (1, 3):
        assert_same(stream(chunks(text, [size]), starts_in_reasoning=False), message)
    return message


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (' name="f"', "f"),
        (" name='f'", "f"),
        (" name=f", "f"),
        ('  name = "f" ', "f"),
        ('\nname="f"', "f"),
        (' name="f', "f"),
        (' name="a b"', "a b"),
        (' name="a"b"', 'a"b'),
        (' name="a>b"', "a>b"),
        (" name='it's'", "it's"),
        (' name="a<b"', "a<b"),
    ],
)
def test_names_in_any_quotes(header: str, name: str) -> None:
    parameter = f"<parameter{header}>v</parameter>"
    message = read(f"<minimax:tool_call>\n<invoke{header}>\n{parameter}\n</invoke>\n</minimax:tool_call>")
    assert arguments(message) == [(name, {name: "v"})]


@pytest.mark.parametrize(
    "header",
    [
        ' name="f" type="string"',
        " name='f' type='string'",
        ' name="f" note="(e.g. <b>)"'.replace("<b>", "x > y"),
        " name=f type=string",
        """ name="f" note='a b' x="c"  """,
    ],
)
def test_more_attributes_after_the_name_are_passed_over(header: str) -> None:
    text = f"<minimax:tool_call>\n<invoke{header}>\n<parameter{header}>v</parameter>\n</invoke>"
    assert arguments(read(text)) == [("f", {"f": "v"})]


def test_a_declared_name_that_looks_like_a_name_with_attributes_is_that_name() -> None:
    name = 'f" type="string'
    text = block(f'<invoke name="{name}">\n<parameter name="{name}">5</parameter>\n</invoke>')
    assert arguments(parse_message(text, [tool(name, {name: {"type": "string"}})])) == [(name, {name: "5"})]
    assert arguments(parse_message(text)) == [("f", {"f": 5})]


def test_an_invoke_without_a_name_is_kept_whole() -> None:
    nameless = '<invoke>\n<parameter name="s">x</parameter>\n</invoke>\n'
    assert read(f"<minimax:tool_call>\n{nameless}</minimax:tool_call>").content == nameless


@pytest.mark.parametrize("header", ["", " ", " id=3", ' name=""', " name=", "x", " name" + " " * 2000])
def test_an_invoke_without_a_name_is_text(header: str) -> None:
    message = read(f"<minimax:tool_call><invoke{header}></invoke></minimax:tool_call>")
    assert message.tool_calls == []
    assert message.content.startswith("<invoke")
