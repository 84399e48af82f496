"""What a request says about the form of its answer: which calls it must or may have, and a guide for its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mm2c_runtime.grammar.guide import (
    Guide,
    guide_from_guided_decoding,
    guide_from_response_format,
    guide_from_structured_outputs,
)
from mm2c_runtime.option_values import invalid
from mm2c_runtime.options import Options

Tools = tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A grammar to be: of calls, and of the text that ``guide`` describes. ``tool_choice`` is as in
    ``tool_grammar``."""

    tools: Tools | None
    tool_choice: str | dict[str, Any]
    guide: Guide | None
    parallel: bool

    @property
    def verbatim(self) -> bool:
        """Whether the answer, reasoning aside, is text that may hold anything, markers included."""
        return self.guide is not None and not self.guide.is_json


def constraint_of(options: Options, tools: Tools | None) -> Constraint | None:
    """None where the answer is free. Raises RequestError INVALID_ARGUMENT.

    Calls are constrained where one is required, named or forbidden, where there may be only one, where a tool
    is ``strict``, and where the text has a guide. A tool that is named is called once. The schemas of the tools
    are enforced where a call is demanded, else those of strict tools; otherwise calls are as free as without a
    grammar.
    """
    guide, choice = guide_of(options), options.tool_choice or "auto"
    if tools is None:
        if choice not in ("none", "auto"):
            raise invalid("tool_choice: demands a call and there are no tools; send tools")
        if guide is None and options.tool_choice != "none":
            return None
        return Constraint(None, "none", guide, options.parallel_tool_calls)
    strict = any(_is_strict(tool) for tool in tools)
    if choice == "auto" and guide is None and not strict and options.parallel_tool_calls:
        return None
    named = choice not in ("none", "auto", "required")
    parallel = options.parallel_tool_calls and not named
    if named or choice == "required":
        return Constraint(tools, choice, guide, parallel)
    bound = tuple(tool if _is_strict(tool) else _named_only(tool) for tool in tools)
    return Constraint(bound if strict else None, choice, guide, parallel)


def _is_strict(tool: dict[str, Any]) -> bool:
    return tool["function"].get("strict") is True


def _named_only(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool with the same name and any parameters."""
    anything = {"type": "object", "additionalProperties": True}
    return {"type": "function", "function": {"name": tool["function"]["name"], "parameters": anything}}


def guide_of(options: Options) -> Guide | None:
    """The one guide that a request may give, under any of its names. Raises RequestError INVALID_ARGUMENT."""
    kind, guide = options.guided_decoding_guide_type, options.guided_decoding_guide
    given: dict[str, Guide] = {}
    if options.response_format is not None:
        found = guide_from_response_format(options.response_format)
        if found is not None:
            given["response_format"] = found
    if options.structured_outputs is not None:
        found = guide_from_structured_outputs(options.structured_outputs)
        if found is not None:
            given["structured_outputs"] = found
    if kind is not None:
        given["guided_decoding_guide_type"] = guide_from_guided_decoding(kind, guide)
    elif guide is not None:
        raise invalid("guided_decoding_guide: needs guided_decoding_guide_type, which says what it is")
    if len(given) > 1:
        raise invalid(f"{' and '.join(given)}: an answer has one form; send one of them")
    return next(iter(given.values()), None)
