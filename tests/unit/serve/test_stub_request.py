"""Tensors and parameters become fields."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import fake_pb
import pytest

from mm2c_runtime import option_values
from mm2c_runtime.errors import RequestError
from mm2c_runtime.option_names import ALIASES, NEUTRAL
from mm2c_runtime.options import _FLAGS, NAMES, RULES
from mm2c_runtime.stub.options import INPUTS, OUTPUTS, PROMPT
from mm2c_runtime.stub.request import decode


def _decode(parameters: dict[str, Any] | None = None, timeout: int = 0, **tensors: Any) -> Any:
    return decode(fake_pb, fake_pb.Request(tensors, parameters, timeout))


def test_tensors_become_values() -> None:
    call = _decode(text_input="Hé", max_tokens=5, temperature=0.7, stop_words=["a", "b"], stream=True)
    assert call.fields == {
        "text_input": "Hé",
        "max_tokens": 5,
        "temperature": 0.7,  # not 0.699999988
        "stop_words": ["a", "b"],
        "stream": True,
    }
    assert call.answer.stream


def test_streaming_is_asked_for() -> None:
    assert not _decode(text_input="a").answer.stream


def test_unknown_parameters_travel_on_for_the_engine_to_refuse() -> None:
    assert _decode({"oops": 1, "priority": 3}, text_input="a").fields == {
        "text_input": "a",
        "oops": 1,
        "priority": 3,
    }


def test_tritons_timeout_is_in_microseconds() -> None:
    assert _decode({"timeout": 2_500_000}, text_input="a").fields["timeout"] == 2.5
    assert _decode(timeout=1_000_000, text_input="a").fields["timeout"] == 1.0
    assert "timeout" not in _decode({"timeout": 0}, text_input="a").fields


@pytest.mark.parametrize("timeout", [-1, "soon", 1.5, True])
def test_bad_timeout(timeout: object) -> None:
    with pytest.raises(RequestError, match="INVALID_ARGUMENT: timeout must be whole microseconds"):
        _decode({"timeout": timeout}, text_input="a")


def test_bad_tensors() -> None:
    with pytest.raises(RequestError, match="text_input takes one value, got 2"):
        _decode(text_input=["a", "b"])
    with pytest.raises(RequestError, match="text_input: the bytes are not valid UTF-8"):
        _decode(text_input=b"\xff")
    with pytest.raises(RequestError, match="max_tokens is given both"):
        _decode({"max_tokens": 3}, text_input="a", max_tokens=3)


def test_outputs_follow_the_flags() -> None:
    assert "token_ids" not in _decode(text_input="a").answer.outputs
    assert "token_ids" in _decode(text_input="a", return_token_ids=True).answer.outputs
    assert "finish_reason" in _decode(text_input="a").answer.outputs
    assert "finish_reason" not in _decode(text_input="a", return_finish_reason=False).answer.outputs


@pytest.mark.parametrize("name", ["return_token_ids", "return_finish_reason", "return_num_input_tokens"])
def test_output_flags_as_parameters_are_read_like_any_other(name: str) -> None:
    output = name.removeprefix("return_")
    for value, shown in (("false", False), (0, False), ("true", True), (1, True)):
        assert (output in _decode({name: value}, text_input="a").answer.outputs) == shown
    with pytest.raises(RequestError, match=f"{name}: .* is neither true nor false"):
        _decode({name: "banana"}, text_input="a")


def test_an_output_that_is_asked_for_by_name_is_given_or_refused() -> None:
    def outputs(*names: str, **tensors: Any) -> frozenset[str]:
        request = fake_pb.Request({"text_input": "a", **tensors})
        request.outputs = set(names) if names else None
        found: frozenset[str] = decode(fake_pb, request).answer.outputs
        return found

    assert outputs() == set(OUTPUTS) - {"token_ids"}  # Triton: all, where none is named
    assert outputs("token_ids") == {"token_ids"}
    assert outputs("token_ids", "text_output", return_token_ids=False) == {"text_output"}
    assert outputs("logprobs", logprobs=2) == {"logprobs"}
    assert outputs("logprobs", sampling_parameters='{"logprobs": 1}') == {"logprobs"}
    with pytest.raises(RequestError, match="it needs the option logprobs"):
        outputs("logprobs", "text_output")


# Triton's own names: they arrive as request parameters, and it refuses them as inputs of a `generate` body.
PARAMETERS_OF_TRITON = {"timeout", "priority"}
TYPES = {
    option_values.integer: ("TYPE_INT32", False),
    option_values.number: ("TYPE_FP32", False),
    option_values.boolean: ("TYPE_BOOL", False),
    option_values.logprobs_wanted: ("TYPE_INT32", False),
    option_values.strings: ("TYPE_STRING", True),
    option_values.stop_strings: ("TYPE_STRING", True),
    option_values.integers: ("TYPE_INT32", True),
    option_values.json_object: ("TYPE_STRING", False),
    option_values.tool_wanted: ("TYPE_STRING", False),
    option_values.text_or_json: ("TYPE_STRING", False),
}
SPECIAL = {"seed": "TYPE_INT64", "random_seed": "TYPE_UINT64", "exclude_input_in_output": "TYPE_BOOL"}


def test_every_option_with_an_effect_is_an_input_of_its_type() -> None:
    wanted = {"sampling_parameters": ("TYPE_STRING", False)}
    for name in {*RULES, *ALIASES} - PARAMETERS_OF_TRITON:
        rule = RULES.get(ALIASES.get(name, name))
        type, many = TYPES[rule.read] if rule is not None else ("TYPE_BOOL", False)
        wanted[name] = (SPECIAL.get(name, "TYPE_BOOL" if name in _FLAGS else type), many)
    given = {name: tuple(option) for name, option in INPUTS.items() if name not in PROMPT}
    without_effect = {name for name in given if name in NEUTRAL}
    assert {n: o for n, o in given.items() if n not in without_effect} == wanted


@pytest.mark.parametrize("name", ["stream", "streaming"])
def test_streaming_under_both_names(name: str) -> None:
    assert _decode(text_input="a", **{name: True}).answer.stream
    assert _decode({name: "true"}, text_input="a").answer.stream
    assert not _decode({name: "false"}, text_input="a").answer.stream
    with pytest.raises(RequestError, match=f"{name}: .* is neither true nor false"):
        _decode({name: "perhaps"}, text_input="a")


def test_the_engine_knows_every_input() -> None:
    assert set(INPUTS) - set(PROMPT) <= set(NAMES)


@pytest.mark.parametrize("model", ["minimax_m2", "minimax_m2_unary"])
def test_config_lists_what_the_stub_reads(model: str) -> None:
    text = (resources.files("mm2c_model_repo") / model / "config.pbtxt").read_text(encoding="utf-8")
    found = re.findall(r'name: "(\w+)" data_type: (\w+) dims: \[ (-?1) \]( optional: true)?', text)
    declared = {name: (type, dims) for name, type, dims, optional in found if optional}
    assert declared == {name: (o.type, "-1" if o.many else "1") for name, o in INPUTS.items()}
    assert {name: type for name, type, _, optional in found if not optional} == OUTPUTS
    assert f'name: "{model}"' in text
