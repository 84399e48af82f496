from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mm2c_runtime.errors import RequestError
from mm2c_runtime.options import NO_END, Options, parse_options


def refusal(fields: dict[str, Any]) -> str:
    with pytest.raises(RequestError) as caught:
        parse_options(fields)
    assert caught.value.code == "INVALID_ARGUMENT"
    return caught.value.message


def test_nothing_given() -> None:
    assert parse_options({}) == Options()


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        ({"max_tokens": 5}, "max_tokens", 5),
        ({"max_tokens": "5"}, "max_tokens", 5),
        ({"max_tokens": 5.0}, "max_tokens", 5),
        ({"max_tokens": [[5]]}, "max_tokens", 5),
        ({"max_tokens": np.int32(5)}, "max_tokens", 5),
        ({"min_length": 3}, "min_tokens", 3),
        ({"temperature": 0}, "temperature", 0.0),
        ({"temperature": "0.5"}, "temperature", 0.5),
        ({"top_k": -1}, "top_k", 0),
        ({"top_p": 1}, "top_p", 1.0),
        ({"random_seed": 2**64 - 1}, "seed", 2**64 - 1),
        ({"seed": "18446744073709551615"}, "seed", 2**64 - 1),
        ({"stop_words": "END"}, "stop", ("END",)),
        ({"stop": ["a", b"b"]}, "stop", ("a", "b")),
        ({"stop_words": [["a"], [""]]}, "stop", ("a",)),
        ({"stop_words": "", "bad_words": ""}, "stop", ()),
        ({"stop_token_ids": "[1, 2]"}, "stop_token_ids", (1, 2)),
        ({"stop_token_ids": 7}, "stop_token_ids", (7,)),
        ({"end_id": -1}, "end_id", NO_END),
        ({"ignore_eos": "true"}, "ignore_eos", True),
        ({"logprobs": True}, "logprobs", 0),
        ({"return_log_probs": True}, "logprobs", 0),
        ({"logprobs": 4}, "logprobs", 4),
        ({"exclude_input_in_output": False}, "echo", True),
        ({"timeout": 0}, "timeout", None),
        ({"timeout": "2.5"}, "timeout", 2.5),
        (
            {"pad_id": 0, "return_finish_reason": True, "n": 1, "beam_width": 1, "priority": -3},
            "priority",
            -3,
        ),
        ({"sampling_parameters": json.dumps({"temperature": "0.2", "max_tokens": 9})}, "max_tokens", 9),
        ({"sampling_parameters": "", "max_tokens": 4}, "max_tokens", 4),
        ({"max_tokens": 4, "sampling_parameters": {"max_tokens": 4}}, "max_tokens", 4),
        ({"temperature": None}, "temperature", None),
        ({"seed": 4, "random_seed": 4}, "seed", 4),
    ],
)
def test_names_and_forms(fields: dict[str, Any], field: str, value: object) -> None:
    assert getattr(parse_options(fields), field) == value


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: 0 is not allowed; it must be at least 1"),
        ({"max_tokens": -4}, "max_tokens: -4 is not allowed; it must be at least 1"),
        ({"max_tokens": 1.5}, "max_tokens: 1.5 is not a whole number"),
        ({"max_tokens": "many"}, 'max_tokens: "many" is not a number'),
        ({"max_tokens": True}, "max_tokens: true is not a number"),
        ({"max_tokens": [1, 2]}, "max_tokens: one value is expected, got 2"),
        ({"temperature": -1}, "temperature: -1.0 is not allowed; it must be at least 0"),
        ({"temperature": float("nan")}, "temperature: nan is not a finite number"),
        ({"temperature": "inf"}, "temperature: inf is not a finite number"),
        ({"top_p": 0}, "top_p: 0.0 is not allowed; it must be greater than 0 and at most 1"),
        ({"top_p": 1.01}, "top_p: 1.01 is not allowed"),
        ({"top_k": -2}, "top_k: -2 is not allowed"),
        ({"min_p": 2}, "min_p: 2.0 is not allowed; it must be from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty: 0.0 is not allowed"),
        ({"presence_penalty": 3}, "presence_penalty: 3.0 is not allowed; it must be from -2 to 2"),
        ({"seed": -1}, "seed: -1 is not allowed"),
        ({"seed": 2**64}, "it must be from 0 to 18446744073709551615"),
        ({"logprobs": 21}, "logprobs: 21 is not allowed; it must be from 0 to 20"),
        ({"stop": [1]}, "stop: a string or a list of strings is expected, got 1"),
        ({"stop_words": b"\xff"}, "stop_words: the bytes are not valid UTF-8"),
        ({"stop_token_ids": [-1]}, "stop_token_ids: [-1] is not allowed"),
        ({"stop_token_ids": "x"}, "stop_token_ids: a list of token ids is expected"),
        ({"ignore_eos": "maybe"}, 'ignore_eos: "maybe" is neither true nor false'),
        ({"max_token": 3}, 'unknown option "max_token"; did you mean "max_tokens"?'),
        ({"qwertz": 3}, 'unknown option "qwertz"'),
        ({"sampling_parameters": {"stream": True}}, "sampling_parameters: stream is an option of its own"),
        (
            {"sampling_parameters": {"return_token_ids": True}},
            "sampling_parameters: return_token_ids is an option of its own",
        ),
        ({"sampling_parameters": "{"}, "sampling_parameters: not valid JSON"),
        ({"sampling_parameters": "[1]"}, "sampling_parameters: a JSON object is expected"),
        ({"sampling_parameters": {"top_j": 1}}, 'unknown option "top_j"; did you mean "top_'),
        (
            {"max_tokens": 3, "sampling_parameters": {"max_tokens": 4}},
            "max_tokens: given both by itself and in",
        ),
        ({"seed": 3, "random_seed": 4}, "seed and random_seed are the same option"),
        ({"n": 2}, "n: 2 is not supported, only 1"),
        ({"skip_special_tokens": False}, "skip_special_tokens: false is not supported, only true"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens: 9 is greater than max_tokens 3"),
        ({"timeout": -1}, "timeout: -1.0 is not allowed"),
    ],
)
def test_refusals_say_what_is_legal(fields: dict[str, Any], message: str) -> None:
    assert message in refusal(fields)
