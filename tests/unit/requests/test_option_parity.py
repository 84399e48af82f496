"""What clients of TensorRT-LLM's and vLLM's backends send without asking for anything is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mm2c_runtime.chat.template import ChatTemplate
from mm2c_runtime.errors import RequestError
from mm2c_runtime.option_names import NEUTRAL
from mm2c_runtime.options import NAMES, Options, parse_options
from mm2c_runtime.requests import parse_request

USER = [{"role": "user", "content": "hi"}]

TENSORRT_LLM = {
    "max_tokens": [[16]], "bad_words": [[""]], "stop_words": [[""]], "end_id": 2, "pad_id": 2, "top_k": 1,
    "temperature": 1.0, "length_penalty": 1.0, "repetition_penalty": 1.0, "min_length": 1,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "random_seed": 0, "return_log_probs": False,
    "return_context_logits": False, "return_generation_logits": False, "return_perf_metrics": False,
    "return_kv_cache_reuse_stats": False, "num_return_sequences": 1, "beam_width": 1, "stream": False,
    "early_stopping": 0, "beam_search_diversity_rate": 0.0, "no_repeat_ngram_size": 0, "top_p_min": 1e-6,
    "top_p_decay": 1.0, "top_p_reset_ids": -1, "num_draft_tokens": 0, "use_draft_logits": False,
    "decoder_text_input": "", "embedding_bias_words": [""], "prompt_vocab_size": 0, "lora_task_id": 0,
    "exclude_input_in_output": True,
}  # fmt: skip
VLLM = {
    "n": 1, "best_of": None, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0,
    "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "seed": None, "stop": [],
    "stop_token_ids": [], "bad_words": [], "include_stop_str_in_output": False, "ignore_eos": False,
    "max_tokens": 16, "min_tokens": 0, "logprobs": None, "prompt_logprobs": None, "detokenize": True,
    "skip_special_tokens": True, "spaces_between_special_tokens": True, "truncate_prompt_tokens": None,
    "logit_bias": {}, "allowed_token_ids": [], "structured_outputs": None, "use_beam_search": False,
    "length_penalty": 0.0, "early_stopping": False, "flat_logprobs": False,
}  # fmt: skip


def refusal(fields: dict[str, Any]) -> str:
    with pytest.raises(RequestError) as caught:
        parse_options(fields)
    assert caught.value.code == "INVALID_ARGUMENT"
    return caught.value.message


def test_every_default_of_both_backends_is_accepted() -> None:
    assert parse_options(TENSORRT_LLM).max_tokens == 16
    assert parse_options(TENSORRT_LLM).min_tokens == 1
    assert parse_options({"sampling_parameters": json.dumps(VLLM)}) == Options(
        max_tokens=16, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0
    )
    outputs = {"return_finish_reason": True, "return_logprobs": False, "return_cumulative_logprob": False}
    assert parse_options({**outputs, "return_num_input_tokens": False}) == Options()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 2}, "n: 2 is not supported, only 1: a request has one answer"),
        ({"beam_width": 4}, "beam_width: 4 is not supported, only 1: there is no beam search"),
        ({"length_penalty": 2}, "length_penalty: 2.0 is not supported, only 1.0 or 0.0"),
        ({"early_stopping": True}, "early_stopping: true is not supported, only false"),
        ({"no_repeat_ngram_size": 3}, "use repetition_penalty or frequency_penalty"),
        ({"return_context_logits": True}, "return_context_logits: true is not supported"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias: is not supported: logits are not biased by token"),
        ({"prompt_logprobs": 1}, "prompt_logprobs: is not supported"),
        (
            {"guided_decoding": {"json": {}}},
            "guided_decoding: is not supported: send guided_decoding_guide_type",
        ),
        ({"sampling_parameters": {"allowed_token_ids": [1]}}, "allowed_token_ids: is not supported"),
        ({"embedding_bias_words": ["a"]}, "embedding_bias_words: is not supported"),
        ({"pad_id": "none"}, 'pad_id: "none" is not a number'),
    ],
)
def test_what_asks_for_more_is_refused_by_name_with_the_reason(fields: dict[str, Any], message: str) -> None:
    assert message in refusal(fields)


def test_neutral_names_do_nothing_and_are_known() -> None:
    assert set(NAMES) >= NEUTRAL
    assert not NEUTRAL & set(Options.__dataclass_fields__)


@pytest.mark.parametrize(
    ("fields", "stops"),
    [
        ({"stop": "END"}, ("END",)),
        ({"stop": '["a", "b"]'}, ("a", "b")),
        ({"stop": ['["a", "b"]']}, ("a", "b")),  # a list tensor with the JSON text in it
        ({"stop": "[]"}, ()),
        ({"stop": "[END]"}, ("[END]",)),
        ({"stop": "[1]"}, ("[1]",)),
        ({"stop": ["[", "]"]}, ("[", "]")),
        ({"stop": "a", "stop_words": ["b", "a"]}, ("a", "b")),
        ({"stop_words": [["b"]], "sampling_parameters": '{"stop": ["a"]}'}, ("b", "a")),
    ],
)
def test_stop_strings_in_every_form(fields: dict[str, Any], stops: tuple[str, ...]) -> None:
    assert parse_options(fields).stop == stops


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"return_log_probs": True, "logprobs": 3}, 3),
        ({"logprobs": 3, "return_log_probs": True}, 3),
        ({"logprobs": 0, "return_log_probs": True}, 0),
        ({"return_logprobs": True}, 0),
        ({"return_log_probs": False, "logprobs": None}, None),
        ({"return_log_probs": False, "logprobs": False}, None),
    ],
)
def test_logprobs_by_both_names(fields: dict[str, Any], wanted: int | None) -> None:
    assert parse_options(fields).logprobs == wanted


@pytest.mark.parametrize("fields", [{"logprobs": 3}, {"logprobs": 0}, {"return_logprobs": True}])
def test_contradictory_logprobs_are_refused(fields: dict[str, Any]) -> None:
    for given in ({"return_log_probs": False, **fields}, {**fields, "return_log_probs": False}):
        assert "are the same option and were given different values" in refusal(given)


@pytest.mark.parametrize("value", ["null", "", " null ", "[]", b"null", [], ["null"], [b""]])
def test_no_tools(value: Any) -> None:
    assert parse_request({"messages": USER, "tools": value}).tools is None


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("roles", "prompt"),
    [
        ("d u", "<system>0<user>1"),
        ("s d u", "<system>0\n\n1<user>2"),
        ("d d u", "<system>0\n\n1<user>2"),
        ("s s u", "<system>0<system>1<user>2"),  # nothing to rename: as it is
        ("u d", "<user>0<system>1"),
    ],
)
def test_developer_is_system_for_a_template_that_does_not_know_it(roles: str, prompt: str) -> None:
    names = {"d": "developer", "s": "system", "u": "user"}
    messages = [{"role": names[role], "content": str(n)} for n, role in enumerate(roles.split())]
    assert parse_request({"messages": messages}).messages
    assert ChatTemplate(TEMPLATE).render(messages) == prompt


def test_a_template_that_knows_developer_gets_it() -> None:
    knows = TEMPLATE + "{% if messages[0].role == 'developer' %}!{% endif %}"
    assert ChatTemplate(knows).render([{"role": "developer", "content": "x"}]) == "<developer>x!"


def test_the_released_layout_shows_a_developer_message() -> None:
    folder = Path(__file__).resolve().parents[2] / "fixtures" / "tiny-m2"
    template = ChatTemplate.from_bundle(folder)
    for role in ("system", "developer"):
        assert "]~b]system\nbe brief" in template.render([{"role": role, "content": "be brief"}, *USER])
