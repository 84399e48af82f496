"""Grammar rules for calls: `<invoke name="f">`, parameters in any order and once each, `</invoke>`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mm2c_runtime.grammar import parameter, text
from mm2c_runtime.grammar.lark import RuleBook
from mm2c_runtime.grammar.members import Member, check_count, end_condition, in_bit_order
from mm2c_runtime.grammar.schema import UnsatisfiableError, Variant, named, refuse, variants
from mm2c_runtime.parsing.header import Header, read_header
from mm2c_runtime.parsing.markers import END_INVOKE, INVOKE, PARAMETER
from mm2c_runtime.parsing.tools import Tools

_ANY_NAME = r"[^\"<>\r\n]{1,256}"
_UNDECLARED = "\0"  # no parameter's name


def any_call(book: RuleBook, name: str | None = None) -> str:
    """The rule for a call of any tool, or of ``name``, with any parameters."""
    opening = book.regex(f'{INVOKE} name="{_ANY_NAME}">\\n') if name is None else _opening(INVOKE, name, "\n")
    tag = book.regex(f'{PARAMETER} name="{_ANY_NAME}">')
    one = f"{tag} {parameter.any_value(book)}"
    return book.rule(f"{opening} ({one})* {text.literal(END_INVOKE + chr(10))}")


def tool_call(book: RuleBook, tool: Mapping[str, Any]) -> str:
    """The rule for a call of ``tool``, an OpenAI tool definition.

    Parameters that are not declared are allowed only where ``additionalProperties`` says so. Raises
    RequestError INVALID_ARGUMENT for a schema that is invalid, cannot be enforced or admits no call.
    """
    function = tool["function"]
    name = function["name"]
    opening = _opening(INVOKE, name, "\n")
    root = function.get("parameters") or {}
    choices = [one for one in _parameters(root, name) if "object" in one["type"]]
    if not choices:
        refuse(f"tool {name}: the parameters' schema is not one of an object")
    rules = list(dict.fromkeys(_arguments(book, tool, choices_of, root) for choices_of in _alike(choices)))
    return book.rule(f"{opening} ({' | '.join(rules)})")


def _parameters(root: Any, name: str) -> list[Variant]:
    with named(f"tool {name}"):
        found = variants(root, root)
    declared = [json.dumps(one.get("properties", {}), sort_keys=True) for one in found]
    if len(set(declared)) > 1:
        refuse(f"tool {name}: alternatives that declare different parameters cannot be enforced")
    return found


def _alike(choices: list[Variant]) -> list[Variant]:
    """The variants, which differ in what they require."""
    return [one for i, one in enumerate(choices) if one not in choices[:i]]


def _arguments(book: RuleBook, tool: Mapping[str, Any], choice: Variant, root: Any) -> str:
    name = tool["function"]["name"]
    readings = Tools([tool])
    declared: Mapping[str, Any] = choice.get("properties", {})
    required = choice.get("required", ())
    additional = choice.get("additionalProperties", False)
    check_count(len({*declared, *required}), f"tool {name}")
    members = []
    for key in dict.fromkeys([*declared, *required]):
        # what is required and not declared is admitted by a schema that says nothing against it
        node = declared.get(key, choice.get("additionalProperties", True))
        opening = _opening(PARAMETER, key, "")
        try:
            with named(f"tool {name}, parameter {key}"):
                rule = parameter.value(book, node, root, readings.schema(name, key))
        except UnsatisfiableError:
            if key in required:
                refuse(f"tool {name}: no value fits the required parameter {key}")
            continue
        members.append(Member(opening, rule, key in required))
    extra = ""
    if additional is not False:
        with suppress(UnsatisfiableError), named(f"tool {name}, additionalProperties"):
            rule = parameter.value(book, additional, root, readings.schema(name, _UNDECLARED))
            extra = f"{_undeclared(book, [*declared, *required])} {rule}"
    return _in_any_order(book, in_bit_order(members), extra)


def _in_any_order(book: RuleBook, members: list[Member], extra: str) -> str:
    """Every parameter at most once, the required ones once, ``extra`` any number of times, and the end."""
    close = text.literal(END_INVOKE + "\n")
    if not members:
        return f"({extra})* {close}" if extra else close
    end = end_condition(members)
    arguments = book.reserve("arguments")
    alternatives = [f"{close} %if {end}" if end else close]
    for bit, member in enumerate(members):
        alternatives.append(
            f"{member.opening} {member.value} {arguments}::set_bit({bit}) %if bit_clear({bit})"
        )
    if extra:
        alternatives.append(f"{extra} {arguments}::_")
    book.define(arguments, "\n  | ".join(alternatives), "::_")
    return f"{arguments}::0x0"


def _undeclared(book: RuleBook, names: list[str]) -> str:
    taken = " | ".join(_opening(PARAMETER, name, "") for name in names)
    tag = f'/{PARAMETER} name="{_ANY_NAME}">/'
    return book.terminal(f"{tag} & ~({taken})" if taken else tag)


def _opening(tag: str, name: str, after: str) -> str:
    """The literal of a tag whose name the parser reads back."""
    header = f' name="{name}">'
    if not name or read_header(header, 0) != Header(name, len(header)):
        refuse(f"{json.dumps(name)[:80]} cannot be a name in a call: the parser would not read it back")
    return text.literal(tag + header + after)
