"""A request as clients send it, checked: prompt text or a conversation, tools, options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mm2c_runtime.json_input import check_json, check_text, load_json
from mm2c_runtime.option_values import invalid, scalar
from mm2c_runtime.options import Options, parse_options

ROLES = ("system", "user", "assistant", "tool", "developer")
_CONTENT = ("text_input", "messages", "tools", "chat_template_kwargs")
# What ``render`` is given by the engine, and what templates call.
_RESERVED = frozenset(
    ("self", "messages", "tools", "add_generation_prompt", "clean", "raise_exception", "strftime_now")
)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Either ``text_input`` (a raw prompt) or ``messages``. ``parse``: split the answer into reasoning,
    content and tool calls; otherwise its text is passed on verbatim."""

    text_input: str | None
    messages: tuple[dict[str, Any], ...] | None
    tools: tuple[dict[str, Any], ...] | None
    template_options: dict[str, Any]
    options: Options
    parse: bool


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
    tools = _tools(given["tools"]) if "tools" in given else None
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
    checked = _messages(messages) if messages is not None else None
    return GenerateRequest(text, checked, tools, template_options, options, parse)


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
        value = load_json(name, value)
    check_json(name, value)
    return value


def _object(name: str, value: Any) -> dict[str, Any]:
    value = _json(name, value)
    if not isinstance(value, dict):
        raise invalid(f"{name}: a JSON object is expected, got {_kind(value)}")
    return value


def _list(name: str, value: Any) -> list[dict[str, Any]]:
    value = _json(name, value)
    if not isinstance(value, (list, tuple)):
        raise invalid(f"{name}: a JSON list of objects is expected, got {_kind(value)}")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise invalid(f"{name}[{index}]: an object is expected, got {_kind(item)}")
    return list(value)


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    messages = _list("messages", value)
    if not messages:
        raise invalid("messages: is empty; at least one message is needed")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = message.get("role")
        if role is None:
            raise invalid(f"{where}: role is missing; it must be one of {', '.join(ROLES)}")
        if role not in ROLES:
            raise invalid(f"{where}: unknown role {json.dumps(role)}; it must be one of {', '.join(ROLES)}")
        _check_content(where, message.get("content"))
        if "content" not in message and not (role == "assistant" and message.get("tool_calls")):
            raise invalid(f"{where}: content is missing")
        if message.get("tool_calls") is not None:
            _check_calls(where, role, message["tool_calls"])
    return tuple(messages)


def _check_content(where: str, content: Any) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise invalid(f"{where}.content: a string or a list of parts is expected, got {_kind(content)}")
    for part in content:
        if isinstance(part, str):
            continue
        if not isinstance(part, dict):
            raise invalid(f"{where}.content: a part must be an object, got {_kind(part)}")
        # OpenAI tags text parts with a type; a tool result's parts carry only their text
        if part.get("type", "text") != "text":
            raise invalid(f"{where}.content: this model reads text only, not {json.dumps(part.get('type'))}")
        if not isinstance(part.get("text"), str):
            raise invalid(f'{where}.content: a text part needs a string in "text"')


def _check_calls(where: str, role: str, calls: Any) -> None:
    if role != "assistant":
        raise invalid(f"{where}.tool_calls: only an assistant message has tool calls")
    if not isinstance(calls, list):
        raise invalid(f"{where}.tool_calls: a list is expected, got {_kind(calls)}")
    for index, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid(f"{where}.tool_calls[{index}]: an object with function.name is expected")
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments.strip():
            try:
                arguments = json.loads(arguments)
            except ValueError as error:
                raise invalid(
                    f"{where}.tool_calls[{index}]: arguments are not valid JSON ({error})"
                ) from None
            check_json(f"{where}.tool_calls[{index}].arguments", arguments)
        if arguments not in (None, "") and not isinstance(arguments, dict):
            raise invalid(
                f"{where}.tool_calls[{index}]: arguments must be a JSON object, not {_kind(arguments)}"
            )


def _tools(value: Any) -> tuple[dict[str, Any], ...] | None:
    if isinstance(value, (list, tuple)) and len(value) == 1 and not isinstance(value[0], dict):
        value = scalar("tools", value)
    if isinstance(value, (str, bytes)) and value.strip() in ("", "null", b"", b"null"):
        return None
    tools = _list("tools", value)
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if tool.get("type", "function") != "function":
            raise invalid(f'{where}: unknown type {json.dumps(tool["type"])}; only "function" tools exist')
        function = tool.get("function")
        if not isinstance(function, dict):
            raise invalid(f'{where}: expected {{"type": "function", "function": {{"name", "parameters"}}}}')
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise invalid(f"{where}.function.name: a non-empty string is expected")
        parameters = function.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            raise invalid(
                f"{where}.function.parameters: a JSON schema object is expected, got {_kind(parameters)}"
            )
    return tuple(tools) or None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", tuple: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
