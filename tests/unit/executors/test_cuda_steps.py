"""Block tables, input buffers, buckets and the budget of pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_program import program, write

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.buckets import bucket_of, buckets
from mm2c_runtime.executors.cuda.inputs import InputBuffer
from mm2c_runtime.executors.cuda.memory import GRAPH_BYTES, MARGIN, Room, pages_that_fit, pages_wanted
from mm2c_runtime.executors.cuda.pages import BlockTables, clear_pages, make_caches
from mm2c_runtime.executors.cuda.program import Kv, Program, read_program
from mm2c_runtime.step import RowCopy, RowStep

CPU = torch.device("cpu")


def test_buckets() -> None:
    assert buckets(1) == [1]
    assert buckets(8) == list(range(1, 9))
    assert buckets(10) == [1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert buckets(100)[7:] == [8, 12, 16, 24, 32, 48, 64, 96, 100]
    assert buckets(256)[-4:] == [96, 128, 192, 256]


@given(st.integers(1, 600))
def test_every_number_of_rows_has_its_bucket(most: int) -> None:
    sizes = buckets(most)
    assert sizes == sorted(set(sizes))
    for rows in range(1, most + 1):
        bucket = bucket_of(sizes, rows)
        assert rows <= bucket <= max(rows, min(most, rows * 3 // 2))


def step(row: int, tokens: list[int], past: int = 0, blocks: list[int] | None = None) -> RowStep:
    return RowStep(row, tokens, past, len(tokens), False, blocks=blocks or [])


def test_tables_follow_rows() -> None:
    tables = BlockTables(rows=4, width=5, pages=20, page=4, device=CPU)
    tables.give(step(2, [1] * 6, blocks=[7, 19]))
    tables.give(step(2, [1] * 2, past=6))
    tables.move(RowCopy(2, 0, 8))
    with pytest.raises(ValueError, match="8 \\+ 1 tokens in 2 pages"):
        tables.give(step(0, [1], past=8))
    tables.give(step(0, [1], past=8, blocks=[3]))  # more of them
    with pytest.raises(ValueError, match="1 \\+ 1 tokens in 0 pages"):
        tables.give(step(2, [1], past=1))
    tables.upload()
    assert tables.of(0) == [7, 19, 3]
    assert tables.device[0, :3].tolist() == [7, 19, 3]
    tables.give(step(0, [1], blocks=[4]))  # a new sequence
    assert tables.of(0) == [4]
    tables.release(0)
    assert tables.of(0) == []
    for call in (
        lambda: tables.release(4),
        lambda: tables.move(RowCopy(0, -1, 1)),
        lambda: tables.give(step(4, [1])),
    ):
        with pytest.raises(ValueError, match="of 4"):
            call()


def test_caches_and_what_is_cleared() -> None:
    for dtype, size in (("bf16", 2), ("fp8", 1)):
        kv = Kv(dtype, page=4, layers=2, kv_heads=3, head_dim=8)  # type: ignore[arg-type]
        caches = make_caches(kv, 5, CPU)
        assert [tuple(cache.shape) for cache in caches] == [(5, 4, 3, 8)] * 4
        assert caches[0].element_size() == size
        assert (caches[1].data_ptr() - caches[0].data_ptr()) % 256 == 0
        assert kv.bytes_per_token == 2 * 2 * 3 * 8 * size
        for cache in caches:
            cache.view(torch.uint8).fill_(0xFF)  # NaN
        clear_pages(caches, [1, 4])
        assert [bool(caches[3][page].float().isnan().any()) for page in range(5)] == [
            True,
            False,
            True,
            True,
            False,
        ]


def test_inputs_are_padded_by_the_last_row() -> None:
    buffer = InputBuffer(ids=12, rows=5, device=CPU)
    buffer.fill([step(0, [4], 9), step(1, [5], 2)], rows=4, width=1)
    given_ = buffer.views(4, 1)
    assert given_.ids.tolist() == [[4], [5], [5], [5]]
    assert given_.past.tolist() == [9, 2, 2, 2]
    assert given_.new.tolist() == [1, 1, 1, 1]
    assert given_.table_row.tolist() == [0, 1, 1, 1]
    buffer.fill([step(3, [1, 2, 3]), step(4, [6], 7)], rows=2, width=3)
    given_ = buffer.views(2, 3)
    assert given_.ids.tolist() == [[1, 2, 3], [6, 0, 0]]
    assert given_.new.tolist() == [3, 1]
    assert given_.table_row.tolist() == [3, 4]
    assert [t.dtype for t in (given_.ids, given_.past, given_.new, given_.table_row)] == [
        torch.int64,
        torch.int32,
        torch.int32,
        torch.int32,
    ]


@given(st.integers(1, 50), st.integers(1, 50))
def test_every_input_is_aligned_as_the_kernels_need_it(ids: int, rows: int) -> None:
    """Relative to the buffer, which torch aligns on a GPU."""
    buffer = InputBuffer(ids, rows, CPU)
    views = buffer.views(rows, 1) if rows <= ids else buffer.views(ids, 1)
    begin = buffer._device.data_ptr()
    for view in (views.ids, views.past, views.new, views.table_row):
        assert (view.data_ptr() - begin) % 16 == 0


@pytest.fixture
def toy(tmp_path: Path) -> Program:
    return read_program(write(tmp_path, program()))


def test_pages_that_are_wanted(toy: Program) -> None:
    assert pages_wanted(toy, None) == 12 * 5  # rows of 18 tokens, pages of 4
    assert [pages_wanted(toy, tokens) for tokens in (1, 4, 5, 10**9)] == [1, 1, 2, 60]


def room(pages: int) -> Room:
    """With space for so many of the toy's pages, of 64 bytes."""
    total = 2**30
    reserve = 2 * 1000 + 3 * GRAPH_BYTES + int(MARGIN * total)
    return Room(total, reserve + 64 * pages + 63, 500 << 20, 1000, 3)


def test_pages_are_what_is_left_of_the_gpu(toy: Program) -> None:
    assert pages_that_fit(toy, room(1000), None, where="here") == 60
    assert pages_that_fit(toy, room(33), None, where="here") == 33
    assert pages_that_fit(toy, room(33), 40, where="here") == 10


def test_too_little_memory_is_refused_with_figures(toy: Program) -> None:
    with pytest.raises(BundleError) as caught:
        pages_that_fit(toy, room(5), 40, where="here")
    assert "0.49 GiB for the weights" in caught.value.what
    assert "for 40 tokens of KV cache" in caught.value.what
    assert "kv_tokens=20 or less (MM2C_KV_TOKENS=20)" in caught.value.remedy
    assert caught.value.where == "here"
    for some in (room(1), Room(2**30, 0, 0, 0, 0)):
        with pytest.raises(BundleError) as caught:  # not even a prefill chunk of 6 and its token
            pages_that_fit(toy, some, None, where="here")
        assert "for 8 tokens of KV cache" in caught.value.what
        assert "--kv-dtype fp8" in caught.value.remedy
