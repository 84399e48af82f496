"""The grammar of a completion: reasoning, then content, calls or a JSON answer, as the request demands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm2c_runtime.chat.history import clean_tools
from mm2c_runtime.chat.plain import plain
from mm2c_runtime.errors import RequestError
from mm2c_runtime.grammar import calls, text
from mm2c_runtime.grammar.guide import Guide
from mm2c_runtime.grammar.json_rules import JsonRules
from mm2c_runtime.grammar.lark import GUIDE, RuleBook
from mm2c_runtime.grammar.schema import UnsatisfiableError, named, refuse, variants
from mm2c_runtime.parsing.markers import BLOCK, END_BLOCK, END_THINK, THINK

_MODES = ("none", "auto", "required")
# Without a bound a model that would rather not call could go on with them for ever.
_NEWLINES = r"\n{0,16}"
# Before JSON; the parser takes as many for </think>'s own, so that content is the JSON alone.
_OWN_NEWLINES = r"\n{0,2}"


def tool_grammar(
    tools: Any,
    tool_choice: Any = "auto",
    response_schema: Any = None,
    tokenizer: Any = None,
    *,
    starts_in_reasoning: bool = False,
    parallel: bool = True,
    guide: Guide | None = None,
) -> str:
    """A Lark grammar for llguidance of the completions that ``parsing`` reads back as what was asked for.

    With a guide of text it is llguidance's list of two such grammars, in JSON.

    ``tools``: OpenAI tool definitions; None lets any tool be called with any parameters. ``tool_choice``:
    none, auto, required, a tool's name, or OpenAI's object that names one. ``response_schema``: the JSON
    schema that content must satisfy; it has no part where a call is required. ``tokenizer``: a
    ``tokenizers.Tokenizer``; markers that are added tokens of it become single-token symbols, all others are
    spelled out. ``starts_in_reasoning``: the prompt opened ``<think>``. ``parallel``: more than one call.
    ``guide``: what the answer must be, where ``response_schema`` is ``Guide("json_schema", response_schema)``. An
    answer that is not JSON is the whole text, or all that follows ``</think>`` and its two newlines, and is not
    combined with tools.

    Where a call is required nothing but newlines comes before its block and nothing after it. Raises
    RequestError INVALID_ARGUMENT for what is invalid or cannot be enforced, with the reason.
    """
    if response_schema is not None:
        if guide is not None:
            refuse("a response schema and a guide exclude each other")
        guide = Guide("json_schema", response_schema)
    try:
        return _Completion(tokenizer, tools, tool_choice, parallel).grammar(guide, starts_in_reasoning)
    except RecursionError:
        refuse("a schema is nested too deeply")


class _Completion:
    """The parts of one grammar. A part ends with what follows it, since text owns the marker it ends at."""

    def __init__(self, tokenizer: Any, tools: Any, tool_choice: Any, parallel: bool) -> None:
        self._added = _added_tokens(tokenizer)
        self._book = RuleBook(self._tokens(THINK, END_THINK, BLOCK, END_BLOCK))
        self._harmless = self._tokens(THINK, END_BLOCK)  # in reasoning and within an answer they are text
        self._mode, chosen = _choice(tool_choice, tools)
        self._block = "" if self._mode == "none" else self._calls(tools, chosen, parallel)
        self._parallel = parallel

    def grammar(self, guide: Guide | None, starts_in_reasoning: bool) -> str:
        if guide is not None and not guide.is_json:
            return self._guided(guide, starts_in_reasoning)
        try:
            answer = "" if guide is None else self._answer(plain(guide.schema, "the response schema"))
        except UnsatisfiableError:
            refuse("no JSON value satisfies the response schema")
        if answer:
            answer = f"{self._book.regex(_OWN_NEWLINES)} {answer}"
        if not starts_in_reasoning:
            return self._book.text(self._body(answer))
        start = f"{self._reasoning(END_THINK)} ({self._body(answer)})"
        if self._block:
            free = self._mode == "auto" and not answer
            after = f" {self._content()}" if free else ""
            start += f" | {self._reasoning(BLOCK)} {self._block}{after}"
        return self._book.text(start)

    def _guided(self, guide: Guide, starts_in_reasoning: bool) -> str:
        """An answer of any text, and nothing beside it."""
        if self._block:
            refuse("a regex, choice or grammar guide cannot be combined with tools; set tool_choice to none")
        # the parser takes two newlines for </think>'s own, and no more: what follows is the answer exactly
        before = f'{self._reasoning(END_THINK)} "\\n\\n" ' if starts_in_reasoning else ""
        return self._book.text(before + GUIDE, guide.lark())

    def _body(self, answer: str) -> str:
        """What comes where reasoning is over or has not been."""
        call = f"{self._newlines_and_block()} {self._block}" if self._block else ""
        if self._mode == "required":
            return call
        if answer:
            return " | ".join(filter(None, [answer, call]))
        return self._content()

    def _content(self) -> str:
        """Free text, with calls in it where they are offered."""
        last = self._book.regex(text.without([END_THINK, BLOCK]))
        if not self._block:
            return last
        times = "*" if self._parallel else "?"
        return self._book.rule(f"({self._until(BLOCK)} {self._block}){times} {last}")

    def _calls(self, tools: Any, chosen: str | None, parallel: bool) -> str:
        """A block's rule, from behind its opening marker to its closing one."""
        if tools is None:
            invokes = [calls.any_call(self._book, chosen)]
        else:
            offered: dict[str, Mapping[str, Any]] = {}
            for tool in clean_tools(tools) or ():
                offered.setdefault(tool["function"]["name"], tool)
            if chosen is not None:
                offered = {chosen: offered[chosen]}
            invokes = [calls.tool_call(self._book, tool) for tool in offered.values()]
        if not invokes:
            return ""
        times = "+" if parallel else ""
        return self._book.rule(f'"\\n" ({" | ".join(invokes)}){times} {self._marker(END_BLOCK)}')

    def _answer(self, schema: Any) -> str:
        rules = JsonRules(self._book, schema, [BLOCK, END_THINK], self._harmless)
        with named("the response schema"):
            return self._book.rule(rules.alternatives(variants(schema, schema)))

    def _tokens(self, *markers: str) -> str:
        """The symbol of those of the markers that are tokens; empty if none is."""
        ids = [str(self._added[marker]) for marker in markers if marker in self._added]
        return f"<[{','.join(ids)}]>" if ids else ""

    def _marker(self, marker: str) -> str:
        return f"<[{self._added[marker]}]>" if marker in self._added else text.literal(marker)

    def _reasoning(self, marker: str) -> str:
        """Reasoning, which ends at either marker, and then this one."""
        text_ = self._book.regex(text.without([END_THINK, BLOCK]))
        before = f"({text_} {self._harmless})* " if self._harmless else ""
        return before + self._until(marker)

    def _until(self, marker: str) -> str:
        """Text, and then ``marker``."""
        body = text.without([END_THINK, BLOCK])
        if marker in self._added:
            return f"{self._book.regex(body)} {self._marker(marker)}"
        return self._book.terminal(f"/{body}/ {text.literal(marker)}")

    def _newlines_and_block(self) -> str:
        if BLOCK in self._added:
            return f"{self._book.regex(_NEWLINES)} {self._marker(BLOCK)}"
        return self._book.terminal(f"/{_NEWLINES}/ {text.literal(BLOCK)}")


def _added_tokens(tokenizer: Any) -> dict[str, int]:
    """The ids of the added tokens; ordinary entries of the vocabulary are matched by their bytes."""
    if tokenizer is None:
        return {}
    return {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}


def _choice(tool_choice: Any, tools: Any) -> tuple[str, str | None]:
    """The mode, and the tool that a named choice means."""
    if tool_choice is None:
        tool_choice = "auto"
    offered = None if tools is None else [tool["function"]["name"] for tool in clean_tools(tools) or ()]
    if isinstance(tool_choice, str) and tool_choice in _MODES:
        if tool_choice == "required" and offered == []:
            refuse("tool_choice is required and there are no tools")
        return tool_choice, None
    name = tool_choice
    if isinstance(tool_choice, Mapping):
        if tool_choice.get("type", "function") != "function":
            refuse(f"tool_choice of type {tool_choice['type']!r} does not exist; only functions can be named")
        function = tool_choice.get("function", tool_choice)
        name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise RequestError(
            "INVALID_ARGUMENT", "tool_choice must be none, auto, required, or name a function of the tools"
        )
    if offered is not None and name not in offered:
        refuse(
            f"tool_choice names {name}, which is none of the tools: {', '.join(offered) or 'there are none'}"
        )
    return "required", name
