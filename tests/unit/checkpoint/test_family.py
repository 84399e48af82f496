"""The released members of the family: by name, told apart, planned and traced from their configuration alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mm2c.checkpoint import assumed_formats, locate, locate_config, read_config, recipes_for_config
from mm2c.checkpoint.family import (
    MEMBERS,
    Member,
    family_note,
    member_folder,
    member_named,
    nearest_name,
    with_family_note,
)
from mm2c.config import BuildOptions, Mapping, ModelConfig
from mm2c.errors import UserError
from mm2c.memory import plan_memory
from mm2c.passes.legality import check_mapping


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MM2C_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config_of(member: Member) -> ModelConfig:
    return read_config(member_folder(member)).model


def identity_line(member: Member) -> str:
    return f"You are a helpful assistant. Your name is {member.identity} and is built by MiniMax."


def test_names() -> None:
    assert [member.short for member in MEMBERS] == ["m2", "m2.1", "m2.5", "m2.7"]
    for member in MEMBERS:
        for name in (member.short, member.short.upper(), member.name, member.name.lower()):
            assert member_named(name) is member
    for word in ("m3", "m2.", "m2.77", "", "minimax", "m2/7"):
        assert member_named(word) is None


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.short)
def test_a_member_is_located_by_name_where_its_configuration_is_all_that_is_needed(
    member: Member, tmp_path: Path, cache: Path
) -> None:
    found = locate_config(member.short, cwd=tmp_path, env={})
    assert (found.source, found.revision, found.folder.name) == (member.name, None, member.name)
    assert cache in found.config.parents
    parsed = read_config(found.config)
    assert parsed.model.context == member.context == (204_800 if member.short == "m2.7" else 196_608)
    assert (parsed.model.layers, parsed.model.experts, parsed.model.hidden) == (62, 256, 3072)
    assert (parsed.model.bos, parsed.model.eos) == (200019, (200020,))
    assert parsed.quant is not None
    again = locate_config(member.name.upper(), cwd=tmp_path, env={})
    assert again.config == found.config


def test_a_folder_of_that_name_comes_first(tmp_path: Path) -> None:
    folder = tmp_path / "m2.7"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert locate_config("m2.7", cwd=tmp_path, env={}).folder == folder


def test_a_member_has_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        locate("m2.5", cwd=tmp_path, env={})
    assert "MiniMaxAI/MiniMax-M2.5" in caught.value.remedy
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("word", "hint"), [("m2.6", "m2"), ("minimax-m2.8", "minimax-m2."), ("minimaxm2.7", "minimax-m2.7")]
)
def test_near_misses(word: str, hint: str, tmp_path: Path) -> None:
    assert f'did you mean "{hint}' in nearest_name(word)
    with pytest.raises(UserError) as caught:
        locate_config(word, cwd=tmp_path, env={})
    assert "did you mean" in caught.value.remedy


def test_other_words_are_no_near_misses() -> None:
    for word in ("model", "checkpoint", "mm2c", "my-m2.7"):
        assert nearest_name(word) == ""


def test_an_unwritable_cache_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MM2C_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written") as caught:
        member_folder(MEMBERS[0])
    assert "MM2C_CACHE" in caught.value.remedy


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.short)
def test_recognised_by_context_and_identity(member: Member) -> None:
    note = family_note(config_of(member), identity_line(member))
    assert note.startswith(f"{member.name}, by its context of {member.context} tokens and the identity")


def test_the_first_release_says_it_in_other_words() -> None:
    line = "You are MiniMax-M2, a helpful AI assistant built by MiniMax. Knowledge cutoff: 2025-06."
    assert family_note(config_of(MEMBERS[0]), line).startswith("MiniMax-M2, by")


def test_without_a_template_the_context_says_what_it_can() -> None:
    assert family_note(config_of(MEMBERS[3]), None) == "MiniMax-M2.7, by its context of 204800 tokens"
    assert family_note(config_of(MEMBERS[1]), "").startswith("MiniMax-M2 or MiniMax-M2.1 or MiniMax-M2.5, by")


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.short)
def test_a_configuration_by_name_says_which(member: Member) -> None:
    (note,) = with_family_note((), config_of(member), member_folder(member))
    assert note == f"{member.name}, by its context of {member.context} tokens and the name in config.json"
    wrong = family_note(
        config_of(member), None, "org/MiniMax-M2.7" if member.short != "m2.7" else "org/MiniMax-M2"
    )
    assert "name in config.json" not in wrong


def test_where_they_disagree_both_are_said() -> None:
    note = family_note(config_of(MEMBERS[0]), identity_line(MEMBERS[3]))
    assert "says MiniMax-M2.7 (context 204800)" in note
    assert "196608" in note
    assert "as no release has it" in family_note(replace(config_of(MEMBERS[0]), context=4096), None)


def test_another_geometry_is_no_member(tmp_path: Path) -> None:
    small = replace(config_of(MEMBERS[0]), layers=2)
    assert family_note(small, identity_line(MEMBERS[0])) == ""
    assert with_family_note(("a",), small, tmp_path) == ("a",)
    (tmp_path / "chat_template.jinja").write_text(identity_line(MEMBERS[2]))
    noted = with_family_note(("a",), config_of(MEMBERS[2]), tmp_path)
    assert noted[0].startswith("MiniMax-M2.5, by its context of 196608 tokens and the identity")
    assert noted[1:] == ("a",)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.short)
def test_memory_is_planned_by_configuration_alone(member: Member) -> None:
    parsed = read_config(member_folder(member))
    formats = assumed_formats(parsed.model, parsed.quant)
    mapping = Mapping(tp=4)
    check_mapping(parsed.model, mapping)
    plan = plan_memory(parsed.model, formats, mapping)
    assert 220e9 < sum(rank.weights.total for rank in plan.ranks) < 240e9
    assert plan.tokens == member.context


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.short)
def test_two_layers_of_every_member_are_traced(member: Member, tmp_path: Path) -> None:
    from mm2c.trace import trace

    raw: dict[str, Any] = member.config_json()
    raw |= {"num_hidden_layers": 2, "attn_type_list": [1, 1]}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    parsed = read_config(tmp_path)
    formats = assumed_formats(parsed.model, parsed.quant)
    recipes = recipes_for_config(parsed.model, formats)
    graph = trace(parsed.model, formats, BuildOptions(), recipes)
    assert graph.recipes["rope.cos"].shape == (member.context, 32)
    assert [v.name for v in graph.model.graph.outputs] == [
        "logits", "k_cache_out.0", "v_cache_out.0", "k_cache_out.1", "v_cache_out.1",
    ]  # fmt: skip
