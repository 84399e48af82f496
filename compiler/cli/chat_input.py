"""What `mm2c chat` is given: sampling options, tools and tool results, checked before anything is asked.

The rules are the server's own, so that a mistake reads the same wherever it is found.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mm2c.errors import UserError
from mm2c_runtime.errors import RequestError

TOOLS_SHAPE = '[{"type": "function", "function": {"name": …, "parameters": …}}]'
INT32_MAX = 2**31 - 1  # Triton's type of every whole number but the seed


def sampling_options(**given: Any) -> dict[str, Any]:
    """The options that were given (not None), by the names of the requests. Raises UserError."""
    from mm2c_runtime.options import parse_options

    options = {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        shown = " ".join(value) if isinstance(value, list) else value
        if isinstance(value, int) and name != "seed" and value > INT32_MAX:
            raise UserError(
                f"{value} is not allowed; it must be at most {INT32_MAX}", where=f"{flag} {shown}"
            )
        try:
            parse_options({name: value})
        except RequestError as error:
            raise UserError(error.message.removeprefix(f"{name}: "), where=f"{flag} {shown}") from None
    return options


def read_tools(path: Path) -> list[dict[str, Any]]:
    """A file with a JSON list of tools, in OpenAI's shape. Raises UserError."""
    from mm2c_runtime.requests import parse_request

    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the tools cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"the tools are not JSON: {error}", where=str(path)) from None
    try:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise RequestError("INVALID_ARGUMENT", "the tools must be a JSON list of objects")
        parse_request({"messages": [{"role": "user", "content": ""}], "tools": tools})
    except RequestError as error:
        raise UserError(error.message, where=str(path), remedy=f"write {TOOLS_SHAPE}") from None
    return tools


def read_schema(path: Path) -> str:
    """A file with a JSON schema, as the ``response_format`` that asks for it. Raises UserError."""
    from mm2c_runtime.schema_check import check_schema

    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        check_schema("the schema", schema)
    except OSError as error:
        raise UserError(f"the schema cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"the schema is not JSON: {error}", where=str(path)) from None
    except RequestError as error:
        raise UserError(error.message, where=str(path)) from None
    return json.dumps({"type": "json_schema", "json_schema": {"name": path.stem, "schema": schema}})


def tool_results(pairs: list[str]) -> dict[str, str]:
    """NAME=TEXT pairs. Raises UserError."""
    results = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UserError("a tool result is NAME=TEXT", where=f"--tool-result {pair}")
        results[name] = text
    return results
