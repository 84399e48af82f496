"""Cleans what clients send as history into what the checkpoint's template can render.

The released templates fail on arguments that are strings, print ``None`` for a missing content and know
reasoning under one name only; OpenAI clients send all three.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from mm2c_runtime.chat.plain import plain
from mm2c_runtime.errors import RequestError
from mm2c_runtime.json_input import kind, load_json

ROLES = ("system", "user", "assistant", "tool", "developer")
# The names under which clients return reasoning, the template's own first.
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
_TEXT_PARTS = ("text", "input_text", "output_text")


def name_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning, if any, under the names that templates read."""
    reasoning = next((message[name] for name in REASONING_NAMES if message.get(name) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def clean_messages(messages: Any) -> list[dict[str, Any]]:
    """OpenAI chat messages as the template expects them; the caller's are left as they are.

    Every message gets a role and a text content; keys that are null are dropped; tool calls get a name and
    arguments that are an object. Raises RequestError INVALID_ARGUMENT, naming the place, for what has no such
    form.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        given = "" if messages in ([], ()) else f", not {kind(messages)}"
        _refuse(f"messages must be a list of at least one message{given}")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(plain(messages, "messages"))]


def instructions_first(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages for a template that knows no ``developer``, OpenAI's newer name of ``system``.

    Such messages become system messages; where the conversation begins with several of either name, they are
    one, since templates read the first alone.
    """
    if not any(message["role"] == "developer" for message in messages):
        return messages
    renamed = [{**one, "role": "system"} if one["role"] == "developer" else one for one in messages]
    leading = next((i for i, one in enumerate(renamed) if one["role"] != "system"), len(renamed))
    if leading < 2:
        return renamed
    content = "\n\n".join(one["content"] for one in renamed[:leading] if one["content"])
    return [{**renamed[0], "content": content}, *renamed[leading:]]


def clean_tools(tools: Any) -> list[dict[str, Any]] | None:
    """OpenAI tool definitions; a bare function (``name`` at the top) is wrapped. None for an empty list."""
    if tools is None:
        return None
    if not isinstance(tools, (list, tuple)):
        _refuse(f"tools must be a list of objects, not {kind(tools)}")
    return [_tool(tool, f"tools[{i}]") for i, tool in enumerate(plain(tools, "tools"))] or None


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        _refuse(f"{where} must be an object")
    role = message.get("role")
    if role not in ROLES:
        given = json.dumps(role) if "role" in message else "missing"
        _refuse(f"{where}.role is {given}; it must be one of {', '.join(ROLES)}")
    if "content" not in message and role != "assistant":
        _refuse(f"{where}: content is missing; it may be null, or an empty string")
    cleaned = {key: value for key, value in message.items() if value is not None}
    cleaned["content"] = _content(message.get("content"), f"{where}.content", role)
    cleaned = name_reasoning(cleaned)
    if not isinstance(cleaned.get("reasoning_content", ""), str):
        _refuse(f"{where}: the reasoning must be a string")
    if "tool_calls" in cleaned:
        calls = cleaned["tool_calls"]
        if role != "assistant":
            _refuse(f"{where}.tool_calls: only an assistant message has tool calls")
        if not isinstance(calls, (list, tuple)):
            _refuse(f"{where}.tool_calls must be a list")
        cleaned["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return cleaned


def _content(content: Any, where: str, role: str) -> Any:
    """Text; for a tool's result in parts a list of these, since the templates render each as a response."""
    if role == "tool" and isinstance(content, (list, tuple)) and content:
        if any(isinstance(part, dict) and "output" in part for part in content):
            return [{"output": _part(part, f"{where}[{i}]", "output")} for i, part in enumerate(content)]
        return [{"type": "text", "text": _part(part, f"{where}[{i}]")} for i, part in enumerate(content)]
    return _text(content, where)


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        _refuse(f"{where} must be a string, a list of text parts, or null")
    return "".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: Any, where: str, also: str = "text") -> str:
    """The text of one part, under ``text`` or the name ``also``."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        _refuse(f"{where} must be a string or an object with a type")
    if part.get("type", "text") not in _TEXT_PARTS:
        _refuse(f"{where} has type {json.dumps(part.get('type'))}; this model reads text only")
    name = also if also in part else "text"
    if not isinstance(part.get(name), str):
        _refuse(f"{where}.{name} must be a string")
    return str(part[name])


def _call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        _refuse(f"{where} must be an object")
    function = call.get("function") or call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        _refuse(f"{where} must name its function")
    function = {**function, "arguments": _arguments(function.get("arguments"), f"{where}.arguments")}
    return {**call, "function": function} if call.get("function") else function


def _arguments(arguments: Any, where: str) -> dict[str, Any]:
    """Clients send the arguments of a call without any as "", null or nothing."""
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    if isinstance(arguments, str):
        arguments = load_json(where, arguments)
    if not isinstance(arguments, dict):
        _refuse(f"{where} must be a JSON object, not {json.dumps(arguments)[:80]}")
    return arguments


def _tool(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        _refuse(f"{where} must be an object")
    tool: dict[str, Any] = given
    if tool.get("type", "function") != "function":
        _refuse(f"{where}.type is {json.dumps(tool['type'])}; only function tools exist")
    if "function" not in tool:
        tool = {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
    function: Any = tool["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        _refuse(f'{where} must name its function: {{"type": "function", "function": {{"name": …}}}}')
    if not isinstance(function.get("parameters", {}), (dict, type(None))):
        _refuse(f"{where}: parameters must be a JSON schema, that is an object")
    return tool


def _refuse(message: str) -> NoReturn:
    raise RequestError("INVALID_ARGUMENT", message)
