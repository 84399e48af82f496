"""Hostile templates: no way into Python or the file system, no work or text without bound."""

from __future__ import annotations

import threading
import time

import pytest

from mm2c_runtime.chat import ChatTemplate
from mm2c_runtime.errors import RequestError

MESSAGES = [{"role": "user", "content": "Hi"}]


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
    ],
)
def test_nothing_of_python_is_within_reach(source: str) -> None:
    refused(source)


def test_format_strings_lead_nowhere() -> None:
    assert ChatTemplate("{{ '{0.__class__}'.format(1) }}").render(MESSAGES) == ""
    assert ChatTemplate("{{ self._TemplateReference__context is defined }}").render(MESSAGES) == "False"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{{ range(10 ** 9) | list }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
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
    ],
)
def test_work_and_text_are_bounded(source: str) -> None:
    begin = time.process_time()
    refused(source)
    assert time.process_time() - begin < 20


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
