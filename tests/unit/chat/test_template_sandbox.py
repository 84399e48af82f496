"""Hostile templates: no way into Python or the file system, no work or text without bound."""

from __future__ import annotations

import json
import resource
import threading
import time

import pytest
from jinja2 import Environment

from mm2c_runtime.chat import ChatTemplate, budget
from mm2c_runtime.errors import BundleError, RequestError

MESSAGES = [{"role": "user", "content": "Hi"}]
LAUGHS = "{% set s = namespace(x=['ha']) %}{% for i in range(60) %}{% set s.x = [s.x, s.x] %}{% endfor %}"
NAMES = [(f"a{i}", f"a{i + 1}") for i in range(40)]
NESTED_WITH = "".join(f"{{% with {new}=[{old}, {old}] %}}" for old, new in NAMES) + "{{ a40 == [1] }}"
NESTED_WITH += "{% endwith %}" * len(NAMES)
NESTED_FOR = "".join(
    f"{{% macro m{i}(a) %}}{{% for b in [[a, a]] | map('list') %}}{{{{ m{i - 1}(b) }}}}{{% endfor %}}{{% endmacro %}}"
    if i
    else "{% macro m0(a) %}{{ a == [1] }}{% endmacro %}"
    for i in range(40)
)
NESTED_FOR += "{{ m39([1]) }}"
CHAINED_DEFAULTS = "{% macro m(a0, " + ", ".join(f"{new}=[{old}, {old}]" for old, new in NAMES)
CHAINED_DEFAULTS += ") %}{{ a40 == [1] }}{% endmacro %}{{ m([1]) }}"


def refused(source: str) -> str:
    with pytest.raises(RequestError) as refusal:
        ChatTemplate(source).render(MESSAGES)
    assert refusal.value.code == "INVALID_ARGUMENT"
    return refusal.value.message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ strftime_now.__globals__.os }}",
        "{{ (messages | attr('__class__')).__name__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% set ns = namespace(__init__=1) %}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{% extends 'x' %}",
        "{{ open('/etc/passwd').read() }}",
        "{{ messages.clear() }}",
        "{{ messages[0].update(a=1) }}",
        "{{ dict.mro() }}",
        "{{ lipsum(1000) }}",
        "{{ lipsum.__globals__['os'].popen('id') }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self._TemplateReference__context.environment.loader }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ (messages | map('attr', '__class__') | first).mro() }}",
        "{{ messages | selectattr('__class__.__mro__') | first }}",
        "{{ messages.__getitem__.__self__.__class__ }}",
        "{{ '{0.__class__.__mro__[1]}'.format(messages)['x'] }}",
        "{% from '/etc/passwd' import x %}",
        "{% set open = 1 %}{{ __builtins__.open('/etc/passwd') }}",
        "{{ (1).__class__.__base__.__subclasses__()[0] }}",
        "{% macro m() %}{% endmacro %}{{ m.__globals__ }}{{ m._func.__globals__ }}",
        "{% for a in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
        "{{ range.__class__('x', (), {}) }}",
        "{{ messages[0].pop('role') }}",
    ],
)
def test_nothing_of_python_is_within_reach(source: str) -> None:
    refused(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{a.__class__}'.format_map({'a': 1}) }}",
        "{{ '{a.__init__.__globals__}'.format(a=raise_exception) }}",
        "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
        "{{ ''.format.__self__.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ cycler.next.__globals__ }}",
        "{{ dict.fromkeys.__globals__ }}{{ dict.fromkeys.__func__ }}{{ dict.__class__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ (messages | attr('__class__')) | string }}",
        "{{ messages | map(attribute='__class__') | join }}",
        "{{ messages | map(attribute='__class__.__mro__') | join }}",
        "{{ messages | groupby('__class__') | map(attribute='grouper') | join }}",
        "{{ [] | map(attribute='__class__') | first | attr('__mro__') }}",
        "{{ '%(a)s' | format(a=strftime_now.__code__) }}",
        "{{ self._TemplateReference__context }}",
    ],
)
def test_attributes_of_python_are_nothing(source: str) -> None:
    try:
        shown = ChatTemplate(source).render(MESSAGES)
    except RequestError as error:
        shown = "" if error.code == "INVALID_ARGUMENT" else error.code
    assert shown == ""


@pytest.mark.parametrize("tag", ["do messages.append(1)", "debug", "trans", "python"])
def test_there_are_no_tags_but_jinjas_own(tag: str) -> None:
    with pytest.raises(BundleError, match="Encountered unknown tag"):
        ChatTemplate(f"{{% {tag} %}}")


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{{ range(10 ** 9) | list }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% for i in range(100000) recursive %}{{ loop(range(100000)) }}{% endfor %}",
        "{{ strftime_now('%c' * 1000000) | length }}",
        "{% set s = namespace(x='ab') %}{% for i in range(60) %}{% set s.x = s.x ~ s.x %}{% endfor %}",
        "{% for a in range(1000) %}{{ 'ab' * 1000000 }}{% endfor %}",
        "{{ 'a' * 10 ** 12 }}",
        "{{ [0] * 10 ** 12 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10 ** 9, 1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ 'a'.center(10 ** 10) }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ 'a\nb' | indent(10 ** 10) }}",
        "{{ [1] | batch(10 ** 10, 0) | list }}",
        "{{ ('a' * 300) | replace('a', 'b' * 1000000) | length }}",
        "{{ ('a' * 300).replace('a', 'b' * 1000000) | length }}",
        "{{ (['b' * 1000000] * 300) | join | length }}",
        "{{ ('b' * 1000000).join(['a'] * 300) | length }}",
        "{{ ('b' * 1000000).join('a' * 300) | length }}",
        "{{ (['a'] * 300) | join('b' * 1000000) | length }}",
        "{{ ''.join([['b' * 1000000][0]] * 300) | length }}",
        "{{ ('a' * 300).translate({97: 'b' * 1000000}) | length }}",
        "{{ ('\t' * 300).expandtabs(1000000) | length }}",
        "{{ ('a\n' * 300) | indent(1000000) | length }}",
        "{{ ('a ' * 300) | wordwrap(1, wrapstring='b' * 1000000) | length }}",
        "{{ ('{0}' * 300).format('b' * 1000000) | length }}",
        "{{ ('{a}' * 300).format_map({'a': 'b' * 1000000}) | length }}",
        "{{ (('%(a)s' * 300) % {'a': 'b' * 1000000}) | length }}",
        "{{ ('%(a)s' * 300) | format(a='b' * 1000000) | length }}",
        "{{ [1] | tojson(indent=10 ** 9) }}",
        "{{ [1, 2] | tojson(separators=('b' * 1000000, ':')) }}",
        "{{ 'a'.zfill(10 ** 10) }}",
        "{{ 'a'.encode().ljust(10 ** 10) | length }}",
        "{{ 'a'.ljust(width=10 ** 10) }}",
        "{{ ([[1] * 1000000] * 300) | sum(start=[]) | length }}",
        "{% set a = 'b' * 9000000 %}{{ (" + " ~ ".join("a" * 40) + ") | length }}",
        "{% set a = 'b' * 9000000 %}{{ (" + " + ".join("a" * 40) + ") | length }}",
        "{% macro m(x, n) %}{% if n %}{{ m(x ~ x, n - 1) }}{% endif %}{% endmacro %}{{ m('ab', 60) }}",
        "{% set s = namespace(x=3) %}{% for i in range(60) %}{% set s.x = s.x * s.x %}{% endfor %}",
        LAUGHS + "{{ s.x }}",
        LAUGHS + "{{ s.x | tojson }}",
        LAUGHS + "{{ s.x | string | length }}",
        LAUGHS + "{{ ('' ~ s.x) | length }}",
        LAUGHS + "{{ ('%s' % (s.x,)) | length }}",
        LAUGHS + "{{ ([s.x] | join) | length }}",
        LAUGHS + LAUGHS.replace("s.x", "t.x").replace(" s ", " t ") + "{{ s.x == t.x }}",
        LAUGHS.replace("['ha']", "('ha',)").replace("[s.x, s.x]", "(s.x, s.x)") + "{{ {s.x: 1} }}",
        "{% macro m(a, n) %}{% if n %}{{ m([a, a], n - 1) }}{% endif %}{{ a == [1] }}{% endmacro %}{{ m([1], 60) }}",
        NESTED_WITH,
        NESTED_FOR,
        CHAINED_DEFAULTS,
    ],
)
def test_work_and_text_are_bounded(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if source.startswith(LAUGHS):  # however small the budget, it is spent
        monkeypatch.setattr(budget, "MAX_TEXT", 5_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    refused(source)
    assert time.process_time() - begin < 12
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_time_is_bounded_where_steps_and_text_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MAX_SECONDS", 0.05)
    slow = "{% for a in range(90000) %}{% if (range(1000) | list) == [] %}{% endif %}{% endfor %}"
    begin = time.process_time()
    assert "takes more than 0.05 s" in refused(slow)
    assert time.process_time() - begin < 5


def test_filters_and_operators_do_what_jinja_does() -> None:
    plain = Environment(trim_blocks=True, lstrip_blocks=True)
    for source in (
        "{{ ['a', 1, none] | join(', ') }}{{ messages | join('-', attribute='content') }}{{ 'abc' | join('.') }}",
        "{{ 'aXbX' | replace('X', '--') }}{{ 'aXbX' | replace('X', '-', 1) }}{{ 'aXbX'.replace('X', '-', 1) }}",
        "{{ 'a\nb' | indent(2) }}{{ 'a\nb' | indent(2, true) }}{{ 'ab' | center(6) }}{{ 'a b' | wordwrap(1) }}",
        "{{ '%s-%d' | format('a', 3) }}{{ '%s' % 'x' }}{{ '%(a)s' % {'a': 1} }}{{ '{} {a}'.format(1, a=2) }}",
        "{{ '-'.join(['a', 'b']) }}{{ '7'.zfill(3) }}{{ 'a\tb'.expandtabs(4) }}{{ 'ab'.translate({97: 'x'}) }}",
        "{{ 'a' ~ 1 ~ [2] }}{{ 'a' + 'b' }}{{ [1] + [2] }}{{ 3 * 'ab' }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ 1.5 + 2 }}",
        "{{ [1, 2] | sum }}{{ messages | map(attribute='content') | join }}{{ [3, 1] | sort | string }}",
        "{{ ' a ' | trim }}{{ 'a' | upper }}{{ 'long text' | truncate(4) }}{{ [1, 2, 3] | batch(2) | list }}",
    ):
        assert ChatTemplate(source).render(MESSAGES) == plain.from_string(source).render(messages=MESSAGES)
    for source in ("{{ {'b': [1], 'a': 'é'} | tojson }}", "{{ {'b': [1]} | tojson(indent=2) }}"):
        value = {"b": [1], "a": "é"} if "é" in source else {"b": [1]}
        indent = 2 if "indent" in source else None
        assert ChatTemplate(source).render(MESSAGES) == json.dumps(value, ensure_ascii=False, indent=indent)


def test_each_rendering_has_a_budget_of_its_own() -> None:
    template = ChatTemplate("{% for a in range(90000) %}{% endfor %}done")
    assert [template.render(MESSAGES) for _ in range(8)] == ["done"] * 8


def test_threads_may_share_a_template() -> None:
    template = ChatTemplate("{% for a in range(2000) %}{{ a % 10 }}{% endfor %}")
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(template.render(MESSAGES))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["0123456789" * 200] * 4
