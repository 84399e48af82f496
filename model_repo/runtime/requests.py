"""A request as clients send it, checked: prompt text or a conversation, tools, options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mm2c_runtime.chat.history import clean_messages, clean_tools
from mm2c_runtime.constraint import Constraint, constraint_of
from mm2c_runtime.json_input import check_json, check_text, kind, load_json
from mm2c_runtime.option_values import invalid, scalar
from mm2c_runtime.options import Options, parse_options
from mm2c_runtime.schema_check import check_schema

_CONTENT = ("text_input", "messages", "tools", "chat_template_kwargs")
# What ``render`` is given by the engine, and what templates call.
_RESERVED = frozenset(
    ("self", "messages", "tools", "add_generation_prompt", "clean", "raise_exception", "strftime_now")
)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Either ``text_input`` (a raw prompt) or ``messages``, cleaned as are the tools (``chat.history`` has the
    rules). ``parse``: split the answer into reasoning, content and tool calls; otherwise its text is passed on
    verbatim. ``constraint``: what its grammar is made of; None where it is free."""

    text_input: str | None
    messages: tuple[dict[str, Any], ...] | None
    tools: tuple[dict[str, Any], ...] | None
    template_options: dict[str, Any]
    options: Options
    parse: bool
    constraint: Constraint | None = None


def parse_request(fields: Mapping[str, Any]) -> GenerateRequest:
    """Checks the inputs and parameters of a request; None values count as absent.

    ``messages`` and ``tools`` are lists of objects or JSON strings of such lists.
    Raises RequestError INVALID_ARGUMENT with the reason; every name is either used or refused.
    """
    try:
        return _parse_request(fields)
    except RecursionError:
        raise invalid("the request is nested too deeply") from None


def _parse_request(fields: Mapping[str, Any]) -> GenerateRequest:
    given = {name: value for name, value in fields.items() if value is not None}
    text, messages = given.get("text_input"), given.get("messages")
    if (text is None) == (messages is None):
        which = "neither" if text is None else "both"
        raise invalid(f"{which} of text_input and messages given; send exactly one of them")
    options = parse_options(
        {name: value for name, value in given.items() if name not in _CONTENT}, other_names=_CONTENT
    )
    parse = options.parse if options.parse is not None else messages is not None
    tools = tools_of(given["tools"]) if "tools" in given else None
    template_options = _object("chat_template_kwargs", given.get("chat_template_kwargs", {}))
    for name in template_options:
        if name in _RESERVED:
            raise invalid(f'chat_template_kwargs: "{name}" is reserved for the template itself')
    if text is not None:
        text = scalar("text_input", text)
        if not isinstance(text, str):
            raise invalid("text_input: a string is expected")
        if not text:
            raise invalid("text_input: is empty")
        check_text("text_input", text)
        if tools and not parse:
            raise invalid("tools: have no effect on a raw text_input; send messages, or parse=true")
        if template_options:
            raise invalid("chat_template_kwargs: have no effect on a raw text_input; send messages")
    elif options.echo:
        raise invalid("exclude_input_in_output: false needs text_input; a conversation is not echoed")
    checked = tuple(clean_messages(_json("messages", messages))) if messages is not None else None
    constraint = constraint_of(options, tools)
    return GenerateRequest(text, checked, tools, template_options, options, parse, constraint)


def _json(name: str, value: Any) -> Any:
    if (
        isinstance(value, (list, tuple))
        and len(value) == 1
        and isinstance(value[0], (str, bytes, list, tuple))
    ):
        value = scalar(name, value)  # a [1] or [1, 1] string tensor
    if isinstance(value, bytes):
        value = scalar(name, value)
    if isinstance(value, str):
        return load_json(name, value)
    check_json(name, value)
    return value


def _object(name: str, value: Any) -> dict[str, Any]:
    value = _json(name, value)
    if not isinstance(value, dict):
        raise invalid(f"{name}: a JSON object is expected, got {kind(value)}")
    return value


def tools_of(value: Any) -> tuple[dict[str, Any], ...] | None:
    """Checked tools from a list or its JSON; None for none. Raises RequestError INVALID_ARGUMENT."""
    if isinstance(value, (list, tuple)) and len(value) == 1 and not isinstance(value[0], dict):
        value = scalar("tools", value)
    if isinstance(value, (str, bytes)) and value.strip() in ("", "null", b"", b"null"):
        return None
    cleaned = clean_tools(_json("tools", value))
    for index, tool in enumerate(cleaned or ()):
        if not isinstance(tool["function"].get("strict", False), (bool, type(None))):
            raise invalid(f"tools[{index}].function.strict: must be true or false")
        parameters = tool["function"].get("parameters")
        if parameters is not None:
            check_schema(f"tools[{index}].function.parameters", parameters)
    return None if cleaned is None else tuple(cleaned)
