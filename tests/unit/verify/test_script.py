from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm2c.errors import UserError
from mm2c.verify.run_streamed import parse_layers
from mm2c.verify.script import DECODE_STEPS, make_script, whole_rows


@given(
    st.integers(2, 50),
    st.integers(1, 300),
    st.integers(1, 6),
    st.integers(1, 64),
    st.integers(1, 90),
    st.integers(1, 4),
)
def test_every_token_is_computed_once_and_in_order(
    vocab: int, context: int, rows: int, chunk: int, tokens: int, groups: int
) -> None:
    script = make_script(vocab, context, rows, chunk, tokens, groups)
    done = [0] * len(script.rows)
    for step in script.steps:
        assert len(step.groups) == groups
        assert step.pieces
        for group, pieces in enumerate(step.groups):
            assert all(script.rows[p.row].group == group for p in pieces)
            widths = {p.stop - p.start for p in pieces}
            assert len(pieces) <= 1 or widths == {1}  # a batch is one prefill, or one token a row
            places = [script.rows[p.row].place for p in pieces]
            assert len(pieces) <= 1 or places == list(range(len(pieces)))
            for piece in pieces:
                assert piece.start == done[piece.row]
                assert piece.stop - piece.start <= chunk
                done[piece.row] = piece.stop
    assert done == [len(row.ids) for row in script.rows]
    for row in script.rows:
        assert 1 <= row.prompt <= len(row.ids) <= context
        assert all(0 <= token < vocab for token in row.ids)
    for group in range(groups):
        assert len(script.rows_of(group)) <= rows


def test_the_usual_script_has_all_cases() -> None:
    script = make_script(1000, 512, 8, 512, 24)
    assert script.tokens == 24
    assert script == make_script(1000, 512, 8, 512, 24)
    whole, chunked, single = script.rows
    assert single.prompt == 1
    pieces = [p for step in script.steps for p in step.pieces]
    assert sum(p.row == 0 and p.stop <= whole.prompt for p in pieces) == 1
    assert sum(p.row == 1 and p.stop <= chunked.prompt for p in pieces) == 2
    assert [len(step.pieces) for step in script.steps][-DECODE_STEPS:] == [3] * DECODE_STEPS


def test_rows_of_other_groups_run_side_by_side() -> None:
    script = make_script(1000, 512, 8, 512, 24, groups=2)
    assert [row.group for row in script.rows] == [0, 1, 0]
    assert [len(own) for own in script.steps[0].groups] == [1, 1]
    assert [len(own) for own in script.steps[-1].groups] == [2, 1]


def test_given_rows() -> None:
    script = whole_rows([[1, 2, 3], [4]], [[5, 6], [7, 8]], chunk=2)
    assert [row.ids for row in script.rows] == [(1, 2, 3, 5, 6), (4, 7, 8)]
    assert [(p.row, p.start, p.stop) for step in script.steps for p in step.pieces] == [
        (0, 0, 2), (0, 2, 3), (1, 0, 1), (0, 3, 4), (1, 1, 2), (0, 4, 5), (1, 2, 3),
    ]  # fmt: skip


def test_layers_by_number_and_range() -> None:
    assert parse_layers("0,5-7, 2", 8) == [0, 2, 5, 6, 7]
    for text in ("", "8", "-1", "x", "3-1", "1-9"):
        with pytest.raises(UserError, match="layers 0 to 7"):
            parse_layers(text, 8)
