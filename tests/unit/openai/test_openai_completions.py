"""The old completions API."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from running_front import RunningFront
from scripted_engine import ended

from mm2c_runtime.openai.triton import Part

PATH = "/v1/completions"


def _numbered(fields: dict[str, Any]) -> list[Any]:
    return [Part(text=f" {fields['text_input']}"), Part(text="!"), ended("length", prompt=2, completion=2)]


def test_one_prompt(front: RunningFront) -> None:
    front.engine.script = _numbered
    answer = front.client().completions.create(model="m2", prompt="A")
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].text == " A!"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 4
    assert json.loads(front.engine.asked[0]["sampling_parameters"]) == {"max_tokens": 16}


def test_prompts_times_n(front: RunningFront) -> None:
    front.engine.script = _numbered
    answer = front.client().completions.create(
        model="m2", prompt=["A", "B"], n=2, seed=7, echo=True, max_tokens=3
    )
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "A A!"), (1, "A A!"), (2, "B B!"), (3, "B B!")
    ]  # fmt: skip
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 8)
    seeds = {}
    for asked in front.engine.asked:
        seeds.setdefault(asked["text_input"], []).append(json.loads(asked["sampling_parameters"])["seed"])
    assert seeds == {"A": [7, 8], "B": [7, 8]}  # a prompt's answers do not depend on its neighbours


def test_a_stream(front: RunningFront) -> None:
    front.engine.script = _numbered
    stream = front.client().completions.create(model="m2", prompt=["A", "B"], stream=True, echo=True)
    texts = {0: "", 1: ""}
    ends: list[tuple[int, str]] = []
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        ends += [(choice.index, choice.finish_reason)] if choice.finish_reason else []
    assert texts == {0: "A A!", 1: "B B!"}
    assert sorted(ends) == [(0, "length"), (1, "length")]


def test_log_probabilities(front: RunningFront) -> None:
    euro = "€".encode()
    tokens = [
        {"token": 5, "logprob": -0.5, "bytes": [97], "top": [{"token": 5, "logprob": -0.5, "bytes": [97]}]},
        {"token": 6, "logprob": -1.0, "bytes": list(euro[:2]), "top": []},
        {"token": 7, "logprob": -1.5, "bytes": list(euro[2:]), "top": []},
        {"token": 2, "logprob": -2.0, "bytes": [], "top": []},
    ]
    front.engine.script = lambda fields: [
        Part(text="a", logprobs=tokens[:2]),
        ended("stop", text="€", logprobs=tokens[2:]),
    ]
    expected = {
        "tokens": ["a", "bytes:\\xe2\\x82", "bytes:\\xac", "token_id:2"],
        "token_logprobs": [-0.5, -1.0, -1.5, -2.0],
        "top_logprobs": [{"a": -0.5}, None, None, None],
        "text_offset": [0, 1, 1, 2],
    }
    whole = front.client().completions.create(model="m2", prompt="A", logprobs=1)
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.model_dump() == expected
    gathered: dict[str, list[Any]] = {name: [] for name in expected}
    for chunk in front.client().completions.create(model="m2", prompt="A", logprobs=1, stream=True):
        assert chunk.choices[0].logprobs is not None
        for name, values in chunk.choices[0].logprobs.model_dump().items():
            gathered[name] += values
    assert gathered == expected


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"prompt": [1, 2]}, "token ids"),
        ({"prompt": [[1, 2]]}, "token ids"),
        ({"prompt": 3}, "a string or a list"),
        ({"prompt": []}, "an empty list"),
        ({"prompt": ""}, "empty"),
        ({"prompt": "a\ud800"}, "surrogate"),
        ({"suffix": "x"}, "does not fill in"),
        ({"best_of": 2}, "beyond 1"),
        ({"echo": True, "logprobs": 1}, "generated tokens only"),
        ({"logprobs": 21}, "less than or equal to 20"),
        ({"n": 0}, "greater than or equal to 1"),
        ({"prompt": ["a"] * 1025}, "more than 1024"),
        ({"stream_options": {}}, "stream=true"),
        ({"messages": []}, "unknown field"),
    ],
)
def test_what_is_refused(front: RunningFront, given: dict[str, Any], reason: str) -> None:
    status, error = front.error(PATH, {"prompt": "A", **given})
    assert status == 400
    assert reason in error["message"]
    assert error["param"] == next(iter(given))
    assert front.engine.asked == []


def test_a_prompt_is_needed(front: RunningFront) -> None:
    assert front.error(PATH, {})[1]["code"] == "missing_required_parameter"
    with pytest.raises(openai.BadRequestError, match="prompt: is missing"):
        front.client().completions.create(model="m2", prompt=None)
