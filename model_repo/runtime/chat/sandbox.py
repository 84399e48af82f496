"""The environment that chat templates run in: what transformers gives them, and nothing to do harm with.

A template comes with a checkpoint, so it is a stranger's program. It sees plain data only, no attribute that
leads into Python, no file, and it has a budget of steps and of text.
"""

from __future__ import annotations

import functools
import json
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

from mm2c_runtime.chat.budget import Budget
from mm2c_runtime.chat.text_growth import FILTERS, measured_call, take_format, take_join, take_operator

# Filters of ours that a template cannot name, since they are no identifiers.
_STEP, _BOUND, _WRITTEN = "a step", "a binding", "an output"
MAX_INDENT = 16  # characters a level of JSON
MAX_FORMAT = 1000  # characters of a time's format


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Renders as transformers' environment does, within a budget that ``start`` fills for one rendering.

    What makes text takes from the budget before it makes it, so that no text grows beyond what is left.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self._budget = budget = Budget()
        self.filters.update({name: self._metered(self.filters[name], take) for name, take in FILTERS.items()})
        self.filters.update({"join": self._join, "tojson": self._tojson})
        self.filters.update({_STEP: budget.step, _BOUND: budget.bound, _WRITTEN: budget.written})
        del self.globals["lipsum"]  # random text of any length
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
            dict=_Dict(),
            namespace=_Namespace,
        )

    def start(self) -> None:
        """Fills the budget of this thread's next rendering."""
        self._budget.start()

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, (str, bytes)):
            args = measured_call(self._budget, owner, obj.__name__, args, kwargs)
        for value in (*args, *kwargs.values()):  # the arguments of a macro are bound to its parameters
            self._budget.bound(value)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        format_method = super().wrap_str_format(value)
        if format_method is None:
            return None

        def measured(*args: Any, **kwargs: Any) -> str:
            given = [*args, *kwargs.values()]
            mappings = [one.values() for one in given if isinstance(one, dict)]  # of format_map
            take_format(self._budget, value.__self__, [*given, *(one for all in mappings for one in all)])
            return format_method(*args, **kwargs)

        return measured

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        take_operator(self._budget, operator, left, right)
        return super().call_binop(context, operator, left, right)

    def _metered(self, function: Callable[..., Any], take: Callable[..., None]) -> Callable[..., Any]:
        """The filter ``function``, which first takes for its value as text, and what ``take`` says."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self._budget.written(args[first])
            take(self._budget, *args[first:], **kwargs)
            return function(*args, **kwargs)

        return metered

    def _join(self, value: Any, d: str = "", attribute: str | int | None = None) -> str:
        parts: Any = value
        if attribute is not None:
            parts = (self.getitem(part, attribute) for part in value)
        texts = [str(self._budget.written(part)) for part in parts]
        take_join(self._budget, str(d), texts)
        return str(d).join(texts)

    def _tojson(
        self,
        x: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON without jinja's HTML escapes: the model was trained on the characters themselves."""
        for space in (indent, *(separators or ())):
            if (len(space) if isinstance(space, str) else space or 0) > MAX_INDENT:
                raise SecurityError(f"the chat template indents JSON by more than {MAX_INDENT}")
        self._budget.written(x)
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        if indent is None:
            return encoder.encode(x)
        return "".join(self._budget.shallow(part) for part in encoder.iterencode(x))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Meter().visit(super()._parse(source, name, filename))
        template.set_environment(self)
        return template


class _Meter(NodeTransformer):
    """Adds the budget's counting to a template's loops, macros, names and output.

    A value is counted with all its members when a name is bound to it: nothing that doubles from name to name
    becomes so large that comparing, hashing or sorting it, which nothing can interrupt, takes long.
    """

    def _stepped(self, node: Any) -> Any:
        fixed = sum(len(text.data) for part in node.body for text in part.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, _statement(nodes.Const(fixed), _STEP, node.lineno))
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        targets: list[Any] = list(node.target.find_all(nodes.Name)) or [node.target]
        self._stepped(node)
        for name in targets:
            node.body.insert(0, _statement(nodes.Name(name.name, "load"), _BOUND, node.lineno))
        return node

    def visit_Macro(self, node: Any) -> nodes.Node:
        node.defaults = [_filtered(value, _BOUND) for value in self._stepped(node).defaults]
        return node  # type: ignore[no-any-return]

    visit_CallBlock = visit_Macro

    def visit_With(self, node: nodes.With) -> nodes.Node:
        self.generic_visit(node)
        node.values = [_filtered(value, _BOUND) for value in node.values]
        return node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        self.generic_visit(node)
        node.node = _filtered(node.node, _BOUND)
        return node

    def _written(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            part if isinstance(part, (nodes.TemplateData, nodes.Const)) else _filtered(part, _WRITTEN)
            for part in node.nodes
        ]
        return node  # type: ignore[no-any-return]

    visit_Output = visit_Concat = _written


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _statement(value: nodes.Expr, name: str, line: int) -> nodes.Node:
    value.set_lineno(line)
    return nodes.ExprStmt(_filtered(value, name), lineno=line)


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


def _strftime_now(format: str) -> str:
    if len(format) > MAX_FORMAT:
        raise SecurityError(f"the chat template formats the time with more than {MAX_FORMAT} characters")
    return datetime.now().strftime(format)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
