"""Guides: what an answer must be, as clients of several servers ask for it.

``json_schema``, ``json_object`` and ``json`` answers are JSON and may stand beside calls. ``regex``, ``choice``,
``gbnf`` and ``lark`` answers are any text, passed on verbatim, so nothing else is read in them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

from llguidance import regex_to_lark

from mm2c_runtime.errors import RequestError
from mm2c_runtime.grammar import text
from mm2c_runtime.grammar.gbnf import lark_of_gbnf
from mm2c_runtime.grammar.lark_source import check_lark
from mm2c_runtime.json_input import check_json, check_text, kind, load_json

Kind = Literal["json_schema", "json_object", "json", "regex", "choice", "gbnf", "lark"]

JSON_KINDS = frozenset({"json_schema", "json_object", "json"})
# Beyond these a guide takes seconds to compile, or to be refused.
MOST_CHARACTERS = {"regex": 20_000, "choice": 200_000, "gbnf": 50_000, "lark": 100_000}
MOST_CHOICES = 10_000


@dataclass(frozen=True)
class Guide:
    """What the answer must be.

    ``value``: a JSON schema (json_schema); None (json_object, json); a pattern that the WHOLE answer matches, in
    the syntax of Rust's ``regex`` crate: no look-around, no back-references, ``^`` and ``$`` at the ends only,
    ``.`` is any character but a line end (regex); strings, of which the answer is one (choice); a grammar in
    llama.cpp's notation, which begins at ``root`` (gbnf), or in llguidance's dialect of Lark, which begins at
    ``start`` (lark). Terminals of both match as much as they can.
    """

    kind: Kind
    value: Any = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            _refuse("guide", f"the kind {self.kind!r} does not exist{_meant(self.kind, get_args(Kind))}")
        if self.kind == "json_schema":
            if not isinstance(self.value, (Mapping, bool)):
                _refuse("guide", f"a JSON schema is an object or a boolean, not {kind(self.value)}")
        elif self.kind == "choice":
            _check_choices(self.value)
        elif self.kind not in JSON_KINDS:
            _check_source(self.kind, self.value)

    @property
    def is_json(self) -> bool:
        """Whether answers are JSON, which calls may stand beside; others are any text."""
        return self.kind in JSON_KINDS

    @property
    def schema(self) -> Any:
        """The schema of a guide that ``is_json``."""
        return {"json_schema": self.value, "json_object": {"type": "object"}}.get(self.kind, True)

    def lark(self) -> str:
        """The grammar, by itself, of a guide that is not JSON.

        Raises RequestError INVALID_ARGUMENT for GBNF that cannot be read and for what must not reach llguidance.
        """
        if self.kind in ("lark", "gbnf"):
            grammar = self.value if self.kind == "lark" else lark_of_gbnf(self.value)
            check_lark(grammar)
            return str(grammar)
        if self.kind == "choice":
            # one lexeme: alternatives of a rule would each be one
            return f"start: ANSWER\nANSWER: {' | '.join(map(text.literal, dict.fromkeys(self.value)))}\n"
        between_slashes: str = regex_to_lark(self.value, "")
        return f"start: /{between_slashes}/\n"


def guide_from_response_format(value: Any) -> Guide | None:
    """The guide that OpenAI's ``response_format`` asks for; None for text. Raises RequestError INVALID_ARGUMENT."""
    where = "response_format"
    if value is None:
        return None
    fields = _object(where, value)
    name = fields.get("type")
    known = ("text", "json_object", "json_schema")
    if name not in known:
        _refuse(f"{where}.type", f"{_quoted(name)} is not one of {', '.join(known)}{_meant(name, known)}")
    if name == "text":
        return None
    if name == "json_object":
        return Guide("json_object")
    inner = f"{where}.json_schema"
    described = _object(inner, fields.get("json_schema"))
    if described.get("schema") is None:
        _refuse(f"{inner}.schema", "is missing; give the JSON schema of the answer, or use type json_object")
    return _schema_guide(f"{inner}.schema", described["schema"])


_GUIDE_TYPES = ("json", "json_schema", "regex", "ebnf_grammar", "lark_grammar")


def guide_from_guided_decoding(guide_type: Any, guide: Any = None) -> Guide:
    """The guide of TensorRT-LLM's ``guided_decoding_guide_type`` and ``guided_decoding_guide``.

    ``lark_grammar`` is ours; a schema may be JSON text or what it says. Raises RequestError INVALID_ARGUMENT.
    """
    where = "guided_decoding_guide"
    if guide_type not in _GUIDE_TYPES:
        known = f"{_quoted(guide_type)} is not one of {', '.join(_GUIDE_TYPES)}"
        _refuse(f"{where}_type", known + _meant(guide_type, _GUIDE_TYPES))
    if guide_type == "json":
        if guide not in (None, ""):
            _refuse(where, "type json takes no guide; for a schema use type json_schema")
        return Guide("json")
    if guide is None or guide == "":
        _refuse(where, f"is missing; type {guide_type} needs it")
    if guide_type == "json_schema":
        return _schema_guide(where, load_json(where, guide) if isinstance(guide, str) else guide)
    kinds: dict[str, Kind] = {"regex": "regex", "ebnf_grammar": "gbnf", "lark_grammar": "lark"}
    return _guide(where, kinds[guide_type], guide)


_STRUCTURES = ("json", "regex", "choice", "grammar", "json_object")


def guide_from_structured_outputs(value: Any) -> Guide | None:
    """The guide of vLLM's ``structured_outputs``, an object with exactly one kind; None for None.

    A grammar with ``::=`` is GBNF, any other Lark. Raises RequestError INVALID_ARGUMENT.
    """
    where = "structured_outputs"
    if value is None:
        return None
    fields = {
        name: one for name, one in _object(where, value).items() if one is not None and one is not False
    }
    for name in fields:
        if name not in _STRUCTURES:
            _refuse(
                f"{where}.{name}",
                f"is not supported; known are {', '.join(_STRUCTURES)}{_meant(name, _STRUCTURES)}",
            )
    if len(fields) != 1:
        given = ", ".join(fields) or "none"
        _refuse(where, f"must say exactly one of {', '.join(_STRUCTURES)}; given: {given}")
    [(name, said)] = fields.items()
    inner = f"{where}.{name}"
    if name == "json_object":
        if said is not True:
            _refuse(inner, f"must be true or false, not {kind(said)}")
        return Guide("json_object")
    if name == "json":
        return _schema_guide(inner, load_json(inner, said) if isinstance(said, str) else said)
    if name == "grammar":
        return _guide(inner, "gbnf" if isinstance(said, str) and "::=" in said else "lark", said)
    return _guide(inner, "choice" if name == "choice" else "regex", said)


def _schema_guide(where: str, schema: Any) -> Guide:
    check_json(where, schema)
    return _guide(where, "json_schema", schema)


def _guide(where: str, name: Kind, value: Any) -> Guide:
    try:
        return Guide(name, value)
    except RequestError as error:
        raise RequestError(error.code, f"{where}: {error.message.removeprefix('guide: ')}") from None


def _check_choices(value: Any) -> None:
    if not isinstance(value, (list, tuple)) or not value:
        _refuse(
            "guide",
            f"choice must be a list of at least one string, not {'an empty list' if value == [] else kind(value)}",
        )
    for index, one in enumerate(value):
        if not isinstance(one, str):
            _refuse("guide", f"choice {index} must be a string, not {kind(one)}")
        check_text(f"guide: choice {index}", one)
    total = sum(map(len, value))
    if len(value) > MOST_CHOICES or total > MOST_CHARACTERS["choice"]:
        _refuse(
            "guide",
            f"{len(value):,} choices of {total:,} characters together; at most {MOST_CHOICES:,} of "
            f"{MOST_CHARACTERS['choice']:,} can be followed",
        )


def _check_source(name: str, value: Any) -> None:
    if not isinstance(value, str):
        _refuse("guide", f"{name} must be a string, not {kind(value)}")
    check_text("guide", value)
    if len(value) > MOST_CHARACTERS[name]:
        _refuse(
            "guide",
            f"{name} has {len(value):,} characters; at most {MOST_CHARACTERS[name]:,} can be followed",
        )
    if name == "regex" and (len(value) - len(value.rstrip("\\"))) % 2:
        _refuse("guide", "regex ends in a backslash that escapes nothing")


def _object(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        _refuse(where, "is missing" if value is None else f"must be an object, not {kind(value)}")
    return value


def _meant(name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4) if isinstance(name, str) else []
    return f'; did you mean "{close[0]}"?' if close else ""


def _quoted(value: Any) -> str:
    return f'"{value[:80]}"' if isinstance(value, str) else kind(value)


def _refuse(where: str, what: str) -> NoReturn:
    raise RequestError("INVALID_ARGUMENT", f"{where}: {what}")
