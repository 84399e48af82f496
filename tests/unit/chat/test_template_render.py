"""Our rendering against transformers' own, for the shipped template and for jinja's corners."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from mm2c_runtime.chat import ChatTemplate
from mm2c_runtime.errors import BundleError, RequestError

SHIPPED = Path(__file__).parents[2] / "fixtures" / "tiny-m2"
SOURCE = (SHIPPED / "chat_template.jinja").read_text(encoding="utf-8")
TEMPLATE = ChatTemplate.from_bundle(SHIPPED)
TIMES = int(os.environ.get("MM2C_EXAMPLES", "1"))  # so many times the examples, and at random

texts = st.one_of(
    st.sampled_from(
        ["", "Hi", "a</think>b", "<think>\nx\n</think>\n\ny", "{{ no }}", "<b>&'\"", "\n\n", "é😀"]
    ),
    st.text(max_size=8),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(texts, inner, max_size=2)),
    max_leaves=5,
)
parts = st.lists(st.one_of(texts, texts.map(lambda text: {"type": "text", "text": text})), max_size=3)
calls = st.fixed_dictionaries(
    {"name": texts.map(lambda text: "f" + text), "arguments": st.dictionaries(texts, json_values, max_size=3)}
)
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.just("system"), "content": texts}),
        st.fixed_dictionaries({"role": st.just("user"), "content": st.one_of(texts, parts)}),
        st.fixed_dictionaries(
            {"role": st.just("assistant"), "content": texts},
            optional={
                "reasoning_content": texts,
                "reasoning": texts,
                "tool_calls": st.lists(
                    st.one_of(
                        calls, calls.map(lambda call: {"id": "1", "type": "function", "function": call})
                    ),
                    max_size=3,
                ),
            },
        ),
        st.fixed_dictionaries({"role": st.just("tool"), "content": texts}),
    ),
    min_size=1,
    max_size=6,
)
tools = st.one_of(
    st.none(),
    st.lists(
        st.fixed_dictionaries(
            {
                "type": st.just("function"),
                "function": st.fixed_dictionaries(
                    {"name": texts.map(lambda text: "f" + text), "description": texts},
                    optional={"parameters": st.dictionaries(texts, json_values, max_size=2)},
                ),
            }
        ),
        max_size=3,
    ),
)


# Of Python 3.10's transformers 5.20 the sandbox is laxer and templates get some messages otherwise.
as_now = pytest.mark.skipif(
    tuple(map(int, version("transformers").split(".")[:2])) < (5, 23),
    reason="transformers 5.23 is the reference",
)


@pytest.fixture(scope="module")
def reference() -> Any:
    """A transformers tokenizer, for its ``apply_chat_template``."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"u": 0}, unk_token="u"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="]~!b[", eos_token="[e~[")


def expected(
    reference: Any, source: str, conversation: Any, definitions: Any, add: bool, **kwargs: Any
) -> Any:
    """What transformers renders, None where its template refuses."""
    from jinja2.exceptions import TemplateError

    try:
        return reference.apply_chat_template(
            conversation,
            definitions,
            chat_template=source,
            add_generation_prompt=add,
            tokenize=False,
            **kwargs,
        )
    except (TemplateError, TypeError, ValueError):
        return None


def rendered(template: ChatTemplate, *args: Any, **kwargs: Any) -> str | None:
    try:
        return template.render(*args, **kwargs)
    except RequestError as error:
        return None if error.code == "INVALID_ARGUMENT" else str(error)


def joined_parts(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            **message,
            "content": "".join(
                part if isinstance(part, str) else part["text"] for part in message["content"]
            ),
        }
        for message in conversation
    ]


@as_now
@settings(max_examples=500 * TIMES, derandomize=TIMES == 1, deadline=None)
@given(conversation=messages, definitions=tools, add=st.booleans())
def test_the_shipped_template_renders_as_in_transformers(
    reference: Any, conversation: Any, definitions: Any, add: bool
) -> None:
    want = expected(reference, SOURCE, conversation, definitions, add)
    assert rendered(TEMPLATE, conversation, definitions, add, clean=False) == want
    assert rendered(TEMPLATE, conversation, definitions, add) == want
    assert rendered(TEMPLATE, joined_parts(conversation), definitions, add) == want


CORNERS = [
    "{% for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}\n {{ m.role }}\n{% endfor %}\n",
    "{{ messages | tojson }}|{{ messages | tojson(indent=2, sort_keys=True) }}",
    "{{ messages | tojson(separators=(',', ':'), ensure_ascii=True) }}",
    "{{ bos_token }}{{ eos_token }}{{ extra }}{{ documents is none }}{{ unk_token is defined }}",
    "{% generation %}{{ messages[0].content }}{% set x = 1 %}{% endgeneration %}{{ x is defined }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% macro f(a, b=2) %}[{{ a }}{{ b }}{{ caller() }}]{% endmacro %}{% call f(3) %}c{% endcall %}",
    "{{ dict(a=1).items() | list }}{{ dict.fromkeys('ab') }}{% set a, b = 1, 'x' %}{{ a }}{{ b }}",
    "{% set block %}  {{ messages[0].content }} {% endset %}<{{ block }}>{% filter upper %}é{% endfilter %}",
    "{{ '%s-%d' | format('a', 3) }}{{ '%05.1f' % 2 }}{{ '{:>5}'.format('a') }}{{ 'ab' * 3 }}{{ 2 ** 10 }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(',') }}",
    "{{ 'a' | center(9) }}{{ 'a\nb' | indent(2) }}{{ [1, 2, 3] | batch(2, 0) | list }}{{ missing }}",
    "{% raw %}{{ x }}{% endraw %}{# comment #}{{ '<&>' }}{{ '<&>' | e }}",
    "{{ raise_exception('no') }}",
    "{{ missing.attribute }}",
    "{% for i in range(3) recursive %}{{ i }}{{ loop.cycle('a', 'b') }}{% endfor %}{{ strftime_now('%%') }}",
    "{% set namespace_ = namespace(_hidden=1) %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].content.split('i')[0] }}{{ messages[0].__class__ }}",
]


@as_now
@pytest.mark.parametrize("source", CORNERS)
def test_jinja_as_transformers_sets_it_up(reference: Any, source: str) -> None:
    conversation = [{"role": "user", "content": 'Hi <é> {"id": 1234567890} %12345678d'}] * 3
    tokens = {"bos_token": "]~!b[", "eos_token": "[e~["}
    for clean in (True, False):
        want = expected(reference, source, conversation, None, True, extra=[1])
        assert rendered(ChatTemplate(source, tokens), conversation, extra=[1], clean=clean) == want


SILENT = [{"role": "user", "content": ""}]


def test_named_tokens_come_from_the_tokenizer_config(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}")
    config = '{"bos_token": "B", "eos_token": {"content": "E", "lstrip": false}, "pad_token": null}'
    assert ChatTemplate.from_bundle(tmp_path).render(SILENT) == "False"
    (tmp_path / "tokenizer_config.json").write_text(config)
    template = ChatTemplate.from_bundle(tmp_path)
    assert template.render(SILENT) == "BEFalse"
    assert template.render(SILENT, bos_token="b") == "bEFalse"


def test_unreadable_templates_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot be read[\s\S]*chat_template\.jinja"):
        ChatTemplate.from_bundle(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("\n{% if %}")
    with pytest.raises(BundleError, match="syntax error in line 2"):
        ChatTemplate.from_bundle(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("fine")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(BundleError, match=r"tokenizer_config\.json"):
        ChatTemplate.from_bundle(tmp_path)
