"""What counts as wrong between a network and ONNX Runtime, and what rounding explains."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from mm2c.verify.network_answers import Answers
from mm2c.verify.network_chain import Case, Chain
from mm2c.verify.network_compare import STEP, StageErrors, StageResult, allowed, clear_flips
from mm2c.verify.network_inputs import LinearCaches, PagedCaches, page_table, step_feeds
from mm2c.verify.network_router import Router, choice_of, unsure_tokens
from mm2c.verify.script import Piece, Row, whole_rows
from mm2c_runtime.manifest_tensorrt import PlanKv, PlanTensor

SURE = np.zeros((1, 2), bool)
ROUTER = Router("logits", "bias", 2)


def cache(name: str, shape: list[int | str]) -> PlanTensor:
    return PlanTensor(name=name, mode="input", kind="cache", dtype="bf16", shape=shape)


def result(errors: StageErrors) -> StageResult:
    return errors.result("prefill", 0, "0-3")


def hidden(*values: float) -> dict[str, Any]:
    return {"hidden_out.0": np.array([[[v, 8.0] for v in values]], np.float32)}


def test_a_stage_passes_within_its_tolerance() -> None:
    errors = StageErrors("wide", 4)
    errors.add("prefill.0", hidden(1.0005, 2), hidden(1, 2), SURE)
    found = result(errors)
    assert found.passed
    assert found.plans == ("prefill.0",)
    assert (found.output, found.tokens, found.left_out) == ("hidden", 2, 0)
    assert found.error == pytest.approx(0.0005, rel=1e-3)
    assert found.scale == 8
    errors.add("prefill.0", hidden(1.001, 2), hidden(1, 2), SURE)
    assert not result(errors).passed


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_no_pass(value: float) -> None:
    errors = StageErrors("declared", 1)
    errors.add("p", hidden(value, 2), hidden(1, 2), SURE)
    assert not result(errors).passed
    assert json.dumps(result(errors).as_json(), allow_nan=False)


def test_another_shape_is_no_pass() -> None:
    errors = StageErrors("declared", 1)
    errors.add("p", hidden(1, 2, 3), hidden(1, 2), SURE)
    assert result(errors).error == math.inf


def test_bf16_steps_grow_with_the_root_of_layers() -> None:
    assert allowed("declared", 4) == 2 * allowed("declared", 1)
    assert allowed("wide", 4) == allowed("wide", 1)
    errors = StageErrors("declared", 1)
    errors.add("p", hidden(1 + 8 * 5 * STEP, 2), hidden(1, 2), SURE)
    assert result(errors).steps == pytest.approx(5)
    assert result(errors).passed


def test_a_token_of_other_experts_is_left_out() -> None:
    errors = StageErrors("declared", 1)
    errors.add("p", hidden(5, 2, 3, 4), hidden(1, 2, 3, 4), np.array([[True, False, False, False]]))
    found = result(errors)
    assert found.passed
    assert (found.tokens, found.left_out) == (3, 1)


def test_not_too_many_tokens_are_left_out() -> None:
    errors = StageErrors("declared", 1)
    errors.add("p", hidden(5, 2), hidden(1, 2), np.array([[True, False]]))
    assert not result(errors).passed


def test_where_every_token_is_unsure_and_differs_none_is_left_out() -> None:
    errors = StageErrors("declared", 1)
    errors.add("p", hidden(5, 6), hidden(1, 2), ~SURE)
    assert result(errors).error == 4
    assert not result(errors).passed


def test_greedy_tokens_count_where_they_are_clear() -> None:
    want = np.array([[1.0, 0.99, 0], [1, 0.5, 0]], np.float32)
    near = np.array([[0.99, 1.0, 0], [1, 0.5, 0]], np.float32)
    assert clear_flips(near, want, 0.01) == 0
    assert clear_flips(near, want, 0.001) == 1
    errors = StageErrors("wide", 1)
    errors.add("p", {"logits": near[:1]}, {"logits": want[:1]}, SURE)
    errors.add_logits(near[:1], want[:1])
    assert result(errors).flips == 1


def test_caches_are_compared_where_they_were_written_and_kept_elsewhere() -> None:
    caches = LinearCaches([cache("k_cache.0", ["batch", 2, 8, 4])], rows=2)
    rows, pieces = [Row((1, 2, 3), 3, 0, 1)], [Piece(0, 1, 3)]
    fed = caches.feeds(rows, pieces)
    assert fed["k_cache.0"].shape == (1, 2, 8, 4)
    made = {"k_cache_out.0": fed["k_cache.0"].copy()}
    made["k_cache_out.0"][0, :, 1:3] = 1

    def compared(change: Any) -> StageResult:
        other = {"k_cache_out.0": made["k_cache_out.0"].copy()}
        change(other["k_cache_out.0"])
        errors = StageErrors("wide", 1)
        errors.add_caches(caches, rows, pieces, fed, other, made, SURE, 1)
        return result(errors)

    def write(place: Any, value: float) -> Any:
        return lambda values: values.__setitem__(place, value)

    assert compared(lambda values: None).passed
    assert compared(write((0, 1, 2, 3), 1.00005)).passed
    assert not compared(write((0, 1, 2, 3), 1.1)).passed
    assert not compared(write((0, 1, 3, 0), 1e-9)).passed  # beyond the step's tokens
    caches.take(rows, pieces, made)
    assert caches.feeds(rows, [Piece(0, 3, 4)])["k_cache.0"].sum() == 2 * 2 * 4
    assert not caches.feeds([Row((1,), 1, 0, 0)], [Piece(0, 0, 1)])["k_cache.0"].any()


def test_pages_of_a_row_are_apart_and_its_own() -> None:
    caches = PagedCaches([cache("v_cache.0", ["pages", 4, 2, 8])], rows=2, longest=6, page=4)
    rows = [Row(tuple(range(6)), 6, 0, place) for place in range(2)]
    assert page_table(0, 2, 6, 4) == [2, 0]
    assert page_table(1, 2, 6, 4) == [3, 1]
    places = [caches.place(rows[r], Piece(r, 3, 6), r) for r in range(2)]
    assert [pages.tolist() for pages, _ in places] == [[2, 0, 0], [3, 1, 1]]
    assert [offsets.tolist() for _, offsets in places] == [[3, 0, 1], [3, 0, 1]]


def test_a_steps_inputs() -> None:
    rows = [Row((5, 6, 7), 2, 0, 0), Row((8, 9), 1, 0, 1)]
    pieces = [Piece(0, 2, 3), Piece(1, 1, 2)]
    kv = PlanKv(layers=1, kv_heads=2, head_dim=8, page=4, dtype="bf16")
    feeds = step_feeds(rows, pieces, kv, 2, 3)
    assert feeds["input_ids"].tolist() == [[7], [9]]
    assert feeds["past_len"].tolist() == [2, 1]
    assert feeds["new_len"].tolist() == [1, 1]
    assert feeds["block_table"].tolist() == [[0], [1]]
    assert {value.dtype.name for value in feeds.values()} == {"int64", "int32"}


def test_a_turned_choice_is_explained_by_a_small_margin_alone() -> None:
    bias = np.zeros(4)
    want = np.array([[4, 2.0, 1.9, 0], [0, 4, 2, -2], [4, 2, 0, 0]], np.float32)
    got = np.array([[4, 1.9, 2.0, 0], [0, 4, -3, -2], [4, 2, 0, 0]], np.float32)
    first = [choice_of(ROUTER, want, bias, 1, 3)]
    second = [choice_of(ROUTER, got, bias, 1, 3)]
    assert first[0].experts[0].tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0]]
    assert first[0].margin[0, 1] == pytest.approx(1 / (1 + math.exp(-2)) - 0.5, abs=1e-6)
    assert unsure_tokens(first, second, 0.02).tolist() == [[True, False, False]]
    assert unsure_tokens(first, second, 0.001).tolist() == [[False, False, False]]
    assert unsure_tokens(first, first, 0.02).tolist() == [[False, False, False]]


def test_a_turned_choice_reaches_later_tokens_through_the_next_layer() -> None:
    same = choice_of(ROUTER, np.array([[3, 2, 1, 0]] * 3, np.float32), np.zeros(4), 1, 3)
    want = choice_of(ROUTER, np.array([[3, 2, 1, 0], [3, 2.0, 1.99, 0], [3, 2, 1, 0]]), np.zeros(4), 1, 3)
    got = choice_of(ROUTER, np.array([[3, 2, 1, 0], [3, 1.99, 2.0, 0], [3, 2, 1, 0]]), np.zeros(4), 1, 3)
    assert unsure_tokens([same, want], [same, got], 0.02).tolist() == [[False, True, False]]
    assert unsure_tokens([want, same], [got, same], 0.02).tolist() == [[False, True, True]]


def test_a_layer_that_computes_the_last_token_alone_chooses_for_it_alone() -> None:
    found = choice_of(ROUTER, np.array([[3, 2, 1, 0]], np.float32), np.zeros(4), 1, 3)
    assert found.margin[0, :2].tolist() == [math.inf, math.inf]
    assert found.experts[0, 2].tolist() == [True, True, False, False]
    assert not found.experts[0, :2].any()


def test_logits_that_hang_on_rounding_are_left_out_unless_there_are_no_others() -> None:
    script = whole_rows([[1, 2], [3]], [[4], [5]], 8)
    first, second = (step.pieces[0] for step in script.steps[:2])
    wanted = {(0, first): np.float32([1, 0]), (0, second): np.float32([0, 1])}
    answers = Answers([Case("prefill", script)], wanted, golden=None)  # type: ignore[arg-type]
    logits: Any = {"wide": {(0, first): np.float32([0, 1]), (0, second): np.float32([0, 1])}}
    (found,) = answers.compare(Chain(judged=("wide",), logits=logits, unsure={(0, first)}))
    assert (found.case, found.positions, found.passed) == ("prefill", 1, True)
    (found,) = answers.compare(Chain(judged=("wide",), logits=logits, unsure={(0, first), (0, second)}))
    assert (found.positions, found.passed) == (2, False)
