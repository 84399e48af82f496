"""Chat files that cannot be served are refused before any work: what, where, and the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mm2c.bundle.chat_files import chat_template_of, check_chat_files
from mm2c.errors import UserError

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture
def checkpoint(tiny_m2: Path, tmp_path: Path) -> Path:
    """The demo checkpoint's files without its weights, for a test to damage."""
    for path in tiny_m2.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def edit(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    content.update(values)
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def refused(checkpoint: Path, what: str, where: str) -> None:
    with pytest.raises(UserError, match=what) as error:
        check_chat_files(checkpoint)
    assert where in error.value.where
    assert error.value.remedy


def test_the_demo_and_random_checkpoints_pass(tiny_m2: Path, random_checkpoint: Callable[..., Path]) -> None:
    check_chat_files(tiny_m2)
    check_chat_files(random_checkpoint(layers=1))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    refused(checkpoint, f"the checkpoint has no {name}", str(checkpoint))


@pytest.mark.parametrize("text", ["", "{", "{}", '{"version": "1.0", "model": {"type": "BPE"}}'])
def test_a_tokenizer_that_does_not_load(checkpoint: Path, text: str) -> None:
    (checkpoint / "tokenizer.json").write_text(text)
    refused(checkpoint, r"tokenizer\.json does not load", "tokenizer.json")


def test_a_tokenizer_beyond_the_vocabulary(checkpoint: Path) -> None:
    edit(checkpoint / "config.json", vocab_size=735)
    refused(checkpoint, r"with id 735, but config\.json's vocab_size is 735", "tokenizer.json")


def test_no_end_of_sequence(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").unlink()
    edit(checkpoint / "config.json", eos_token_id=None)
    refused(checkpoint, "no answer would ever end", str(checkpoint))


def test_an_end_of_sequence_that_the_tokenizer_lacks(checkpoint: Path) -> None:
    edit(checkpoint / "config.json", vocab_size=1000)
    edit(checkpoint / "generation_config.json", eos_token_id=[731, 900])
    refused(checkpoint, r"eos_token_id 900 is no token of tokenizer\.json", str(checkpoint))


@pytest.mark.parametrize(
    "name", ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json"]
)
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe{}"])
def test_a_damaged_side_file(checkpoint: Path, name: str, content: bytes) -> None:
    (checkpoint / name).write_bytes(content)
    refused(checkpoint, name.replace(".", r"\."), name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "hot"), ("temperature", -1), ("top_p", 0), ("top_p", 1.5), ("top_k", 2.5), ("top_k", -7),
        ("min_p", 2), ("repetition_penalty", 0), ("max_new_tokens", 0), ("top_k", True), ("temperature", [1]),
    ],
)  # fmt: skip
def test_sampling_defaults_that_cannot_be_meant(checkpoint: Path, key: str, value: object) -> None:
    edit(checkpoint / "generation_config.json", **{key: value})
    refused(checkpoint, f"{key} is .*", "generation_config.json")


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{% for m in messages %}", "syntax error in line 1"),
        ("{{ messages.nothing.at_all }}", "cannot render one user message"),
        ("{{ raise_exception('system first') }}", "system first"),
        ("{{ messages.__class__.__mro__ }}{{ ''.__class__.__bases__[0].__subclasses__() }}", "cannot render"),
        ("{% if false %}{% endif %}", "to nothing"),
    ],
)
def test_a_template_that_cannot_chat(checkpoint: Path, template: str, what: str) -> None:
    (checkpoint / "chat_template.jinja").write_text(template)
    refused(checkpoint, what, "chat_template.jinja")


def test_no_template(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    edit(checkpoint / "tokenizer_config.json", chat_template=None)
    refused(checkpoint, "no chat template", str(checkpoint))


@pytest.mark.parametrize(
    "field", [TEMPLATE, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]]
)
def test_a_template_inside_the_tokenizers_configuration(checkpoint: Path, field: object) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    edit(checkpoint / "tokenizer_config.json", chat_template=field)
    assert chat_template_of(checkpoint) == TEMPLATE
    check_chat_files(checkpoint)
