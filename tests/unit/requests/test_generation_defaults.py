from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mm2c_runtime.errors import BundleError, RequestError
from mm2c_runtime.generation import Generation, Preparer
from mm2c_runtime.generation_defaults import GenerationDefaults
from mm2c_runtime.requests import parse_request


def load(tmp_path: Path, config: dict[str, Any] | None, eos: list[int] | None = None) -> GenerationDefaults:
    path = tmp_path / "generation_config.json"
    if config is not None:
        path.write_text(json.dumps(config))
    return GenerationDefaults.load(path, eos=eos or [])


def test_released_config(tmp_path: Path) -> None:
    defaults = load(
        tmp_path, {"eos_token_id": 200020, "do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 40}
    )
    assert (defaults.temperature, defaults.top_p, defaults.top_k) == (1.0, 0.95, 40)
    assert defaults.eos == {200020}


def test_greedy_several_ends_and_missing_file(tmp_path: Path) -> None:
    assert load(tmp_path, None, eos=[3]) == GenerationDefaults(eos=frozenset([3]))
    defaults = load(
        tmp_path, {"do_sample": False, "temperature": 1.0, "eos_token_id": [1, 2], "top_k": None}, eos=[3]
    )
    assert defaults.temperature == 0
    assert defaults.eos == {1, 2}
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(BundleError, match="not valid JSON"):
        load(tmp_path, None)


class Template:
    def render(
        self, messages: Any, tools: Any = None, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        return "<think>" if kwargs.get("think", True) else "x"


def prepare(
    fields: dict[str, Any],
    defaults: GenerationDefaults,
    context: int = 50,
    vocab: int = 256,
    truncation: int | None = None,
    padding: int | None = None,
) -> Generation:
    alphabet = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if truncation is not None:
        tokenizer.enable_truncation(truncation)
    if padding is not None:
        tokenizer.enable_padding(length=padding)
    preparer = Preparer(
        tokenizer,
        Template(),
        defaults,
        context=context,
        vocab=vocab,
        will_reason=lambda text: "<think>" in text,
    )
    return preparer.prepare(parse_request(fields))


def test_a_request_overrides_the_defaults() -> None:
    defaults = GenerationDefaults(temperature=0.7, top_k=40, top_p=0.95, eos=frozenset([9]), max_tokens=30)
    plain = prepare({"text_input": "hello"}, defaults)
    assert (plain.sampling.temperature, plain.sampling.top_k, plain.sampling.top_p) == (0.7, 40, 0.95)
    assert plain.stop_tokens == {9}
    assert plain.max_tokens == 30
    assert prepare({"text_input": "x" * 40}, defaults).max_tokens == 10
    own = prepare(
        {
            "text_input": "x",
            "temperature": 0,
            "top_k": 0,
            "top_p": 1,
            "end_id": 4,
            "stop_token_ids": [5],
            "seed": 0,
        },
        defaults,
    )
    assert (own.sampling.temperature, own.sampling.top_k, own.sampling.top_p, own.sampling.seed) == (
        0,
        0,
        1,
        0,
    )
    assert own.stop_tokens == {4, 5}
    assert prepare({"text_input": "x", "ignore_eos": True, "stop_token_ids": [5]}, defaults).stop_tokens == {
        5
    }
    assert prepare({"text_input": "x", "end_id": -1}, defaults).stop_tokens == frozenset()
    assert prepare({"text_input": "x", "end_id": -1, "stop_token_ids": [5]}, defaults).stop_tokens == {5}
    assert plain.sampling.seed != prepare({"text_input": "hello"}, defaults).sampling.seed


def test_reasoning_is_decided_by_the_prompt() -> None:
    messages = [{"role": "user", "content": "x"}]
    assert prepare({"messages": messages}, GenerationDefaults()).starts_in_reasoning
    quiet = {"messages": messages, "chat_template_kwargs": {"think": False}}
    assert not prepare(quiet, GenerationDefaults()).starts_in_reasoning
    assert not prepare({"text_input": "<think>"}, GenerationDefaults()).starts_in_reasoning


def test_both_figures_of_a_prompt_that_does_not_fit() -> None:
    with pytest.raises(RequestError, match="the prompt has 60 tokens; the context holds 50"):
        prepare({"text_input": "x" * 60}, GenerationDefaults())
    assert prepare({"text_input": "x" * 49}, GenerationDefaults()).max_tokens == 1


def test_a_prompt_is_neither_cut_nor_padded_as_in_training() -> None:
    limits = {"truncation": 4, "padding": 16}
    long = {"text_input": "x" * 40, "bad_words": ["y"]}
    assert len(prepare(long, GenerationDefaults(), **limits).prompt) == 40
    short = prepare({"text_input": "xyz", "bad_words": ["y"]}, GenerationDefaults(), **limits)
    assert (len(short.prompt), sorted(map(len, short.bad_words))) == (3, [1, 2])


def test_bad_words_with_and_without_a_space() -> None:
    words = prepare({"text_input": "x", "bad_words": ["ab"]}, GenerationDefaults()).bad_words
    assert sorted(map(len, words)) == [2, 3]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"temperature": "hot"}, 'temperature is "hot"; it must be a number, at least 0'),
        ({"temperature": -1}, "temperature is -1; it must be a number, at least 0"),
        ({"temperature": True}, "temperature is true"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"top_p": 0}, "top_p is 0; it must be a number, greater than 0 and at most 1"),
        ({"top_p": [0.9]}, "top_p is [0.9]"),
        ({"top_k": 1.5}, "top_k is 1.5; it must be a whole number"),
        ({"top_k": -2}, "top_k is -2"),
        ({"min_p": 1.1}, "min_p is 1.1; it must be a number, from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be a number, greater than 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is Infinity"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be a whole number, at least 1"),
        ({"max_new_tokens": "20"}, 'max_new_tokens is "20"'),
        ({"do_sample": "no"}, 'do_sample is "no"; it must be true or false'),
        ({"eos_token_id": "</s>"}, 'eos_token_id is "</s>"; it must be a token id or a list'),
        ({"eos_token_id": [1, None]}, "eos_token_id is [1, null]"),
        ({"eos_token_id": [1, 256]}, "each a whole number below 256"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ([1], "the file is [1]; it must be a JSON object"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_at_load(tmp_path: Path, config: Any, message: str) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(BundleError) as caught:
        GenerationDefaults.load(path, vocab=256)
    assert message in caught.value.what
    assert (caught.value.where, bool(caught.value.remedy)) == (str(path), True)


def test_whole_floats_and_switched_off_filters_pass(tmp_path: Path) -> None:
    defaults = load(tmp_path, {"top_k": -1, "max_new_tokens": 20.0, "temperature": 0, "surprise": {}})
    assert (defaults.top_k, defaults.max_tokens, defaults.temperature) == (0, 20, 0.0)
