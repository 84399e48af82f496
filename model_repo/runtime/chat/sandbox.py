"""The environment that chat templates run in: what transformers gives them, and nothing to do harm with.

A template comes with a checkpoint, so it is a stranger's program. It sees plain data only, no attribute that
leads into Python, no file, and it has a budget of steps and of text.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_STEPS = 500_000  # loop turns and macro calls in one rendering
MAX_TEXT = 250_000_000  # characters that one rendering writes and assigns
MAX_WIDTH = 10_000_000  # characters that one padding, repetition or format makes

# Filters of ours that a template cannot name, since they are no identifiers.
_STEP, _CHARGE = "a step", "a charge"
_WIDE_FILTERS = ("batch", "center", "format", "indent", "slice")
_WIDE_FORMAT = re.compile(r"%[^%a-zA-Z]*\d{8}|\{[^}]*\d{8}")


class _Budget(threading.local):
    steps = text = 0


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Renders as transformers' environment does, within a budget that ``start`` fills for one rendering."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self._budget = _Budget()
        self.filters.update({name: _narrow(self.filters[name]) for name in _WIDE_FILTERS})
        self.filters.update({"tojson": _tojson, _STEP: self._step, _CHARGE: self._charge})
        del self.globals["lipsum"]  # random text of any length
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=lambda format: datetime.now().strftime(format),
            dict=_Dict(),
            namespace=_Namespace,
        )

    def start(self) -> None:
        """Fills the budget of this thread's next rendering."""
        self._budget.steps, self._budget.text = MAX_STEPS, MAX_TEXT

    def _step(self, fixed_text: int) -> None:
        """One turn of a loop or call of a macro, whose body has so many characters of the template's own."""
        self._budget.steps -= 1
        self._budget.text -= fixed_text
        if self._budget.steps < 0:
            raise SecurityError(f"the chat template takes more than {MAX_STEPS} steps")

    def _charge(self, value: Any) -> Any:
        """A value that is written or assigned: so no text grows by doubling, and no output without end."""
        if isinstance(value, (str, list, tuple)):
            self._budget.text -= len(value)
        if self._budget.text < 0:
            raise SecurityError(f"the chat template makes more than {MAX_TEXT} characters")
        return value

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(getattr(obj, "__self__", None), str):
            _check_width(*args, *kwargs.values())
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        format_method = super().wrap_str_format(value)
        if format_method is not None:
            _check_format(value.__self__)
        return format_method

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_format(left)
            _check_width(*(right if isinstance(right, tuple) else (right,)))
        elif operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
                    _check_width(len(sequence) * count)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_width(left.bit_length() * right)
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Meter().visit(super()._parse(source, name, filename))
        template.set_environment(self)
        return template


class _Meter(NodeTransformer):
    """Adds the budget's counting to a template's loops, macros, assignments and output."""

    def _stepped(self, node: Any) -> nodes.Node:
        fixed = sum(len(text.data) for part in node.body for text in part.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filtered(nodes.Const(fixed), _STEP), lineno=node.lineno))
        return node  # type: ignore[no-any-return]

    visit_For = visit_Macro = visit_CallBlock = _stepped

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        self.generic_visit(node)
        node.node = _filtered(node.node, _CHARGE)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            part if isinstance(part, (nodes.TemplateData, nodes.Const)) else _filtered(part, _CHARGE)
            for part in node.nodes
        ]
        return node


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _narrow(function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, refusing a width that would make a huge text."""
    formats = function.__name__ == "do_format"

    @functools.wraps(function)
    def narrow(*args: Any, **kwargs: Any) -> Any:
        if formats:
            _check_format(args[0])
        _check_width(*args, *kwargs.values())
        return function(*args, **kwargs)

    return narrow


def _check_width(*widths: Any) -> None:
    if any(isinstance(width, int) and width > MAX_WIDTH for width in widths):
        raise SecurityError(f"the chat template makes a text wider than {MAX_WIDTH}")


def _check_format(text: Any) -> None:
    if isinstance(text, str) and _WIDE_FORMAT.search(text):
        raise SecurityError(f"the chat template makes a text wider than {MAX_WIDTH}")


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks what the assistant wrote; rendering ignores the mark."""

    tags = {"generation"}  # noqa: RUF012  # jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Dict:
    """``dict`` for templates: makes dictionaries, has none of the type's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """``namespace`` for templates: holds no name that begins with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], args[1:]
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _public(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _public(name)
        super().__setitem__(name, value)


def _public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template may not store {name!r}: it begins with an underscore")


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja's HTML escapes: the model was trained on the characters themselves."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
