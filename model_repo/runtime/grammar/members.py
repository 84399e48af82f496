"""Rules for things that come in any order and once each: members of an object, parameters of a call.

A parametric rule carries the set of what has come in the bits of its parameter, so n things take n
alternatives, not n! orders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mm2c_runtime.grammar.lark import RuleBook
from mm2c_runtime.grammar.schema import UnsatisfiableError, refuse
from mm2c_runtime.grammar.text import repeat

MOST = 64  # bits of a parametric rule's parameter


@dataclass(frozen=True)
class Member:
    """``opening`` and then ``value``; ``continued`` is the opening where something came before."""

    opening: str
    value: str
    required: bool
    continued: str = ""


def check_count(count: int, what: str) -> None:
    if count > MOST:
        refuse(f"{what} has {count} members; orders of more than {MOST} cannot be enforced")


def in_bit_order(members: list[Member]) -> list[Member]:
    """The required ones first, so that one comparison says whether all have come."""
    return sorted(members, key=lambda member: not member.required)


def end_condition(members: list[Member]) -> str:
    """Holds once every required member has come; empty if none is."""
    required = sum(member.required for member in members)
    return f"is_ones([0:{required}])" if required else ""


def members_rule(
    book: RuleBook, members: list[Member], extra: list[str], limits: dict[str, Any], comma: str
) -> str:
    """The right-hand side for an object of ``members`` and any number of ``extra`` ones."""
    low, high = limits.get("minProperties", 0), limits.get("maxProperties")
    if not members:
        return _map(extra, low, high, comma)
    members = in_bit_order(members)
    if extra and (high is not None or low > sum(member.required for member in members)):
        refuse("minProperties and maxProperties beside properties need additionalProperties: false")
    if max(low, sum(member.required for member in members)) > min(
        len(members), len(members) if high is None else high
    ):
        raise UnsatisfiableError
    ends = [end_condition(members), f"bit_count_ge(_, {low})" if low else ""]
    end = _all([one for one in ends if one])
    names = {"": book.reserve("first"), comma: book.reserve("rest")}
    for before, name in names.items():
        choices = ['"}"' + (f" %if {end}" if end else "")]
        for bit, member in enumerate(members):
            free = [f"bit_clear({bit})"] + ([f"bit_count_lt(_, {high})"] if high is not None else [])
            opening = member.continued if before else member.opening
            choices.append(f"{opening} {member.value} {names[comma]}::set_bit({bit}) %if {_all(free)}")
        choices += [f"{before} {one} {names[comma]}::_" for one in extra]
        book.define(name, "\n  | ".join(choices), "::_")
    return f'"{{" {names[""]}::0x0'


def _map(extra: list[str], low: int, high: int | None, comma: str) -> str:
    if (high is not None and low > high) or (low and not extra):
        raise UnsatisfiableError
    if not extra or high == 0:
        return '"{" "}"'
    pair = f"({' | '.join(extra)})"
    pairs = pair
    if high != 1:  # Lark knows no {0,0}
        pairs += f" ({comma} {pair}){repeat(max(low - 1, 0), None if high is None else high - 1)}"
    return f'"{{" {pairs} "}}"' if low else f'"{{" ({pairs})? "}}"'


def _all(conditions: list[str]) -> str:
    if len(conditions) < 2:
        return "".join(conditions)
    return f"and({conditions[0]}, {_all(conditions[1:])})"
