from __future__ import annotations

import numpy as np
import pytest

from mm2c_runtime.executors.collectives import (
    all_gather,
    all_reduce,
    gathered_shape,
    reduce_scatter,
    scattered_shape,
)


def test_all_reduce_adds_in_rank_order():
    parts = [np.float32([1e8, 1.0]), np.float32([1.0, 2.0]), np.float32([-1e8, 3.0])]
    out = np.empty(2, np.float32)
    all_reduce(parts, out)
    assert out.tolist() == [float((parts[0][0] + parts[1][0]) + parts[2][0]), 6.0]
    all_reduce(parts[:1], out)
    assert out.tolist() == parts[0].tolist()


def test_all_gather_concatenates():
    parts = [np.full((2, 3), rank, np.float32) for rank in range(4)]
    for axis, shape in ((0, (8, 3)), (-1, (2, 12))):
        assert gathered_shape((2, 3), axis, 4) == shape
        out = np.empty(shape, np.float32)
        all_gather(parts, axis, out)
        assert np.array_equal(out, np.concatenate(parts, axis))


def test_reduce_scatter_leaves_every_rank_its_part_of_the_sum():
    parts = [np.arange(24, dtype=np.float32).reshape(6, 4) * (rank + 1) for rank in range(2)]
    for axis, shape in ((0, (3, 4)), (-1, (6, 2))):
        assert scattered_shape((6, 4), axis, 2) == shape
        outs = [np.empty(shape, np.float32) for _ in range(2)]
        reduce_scatter(parts, axis, outs)
        assert np.array_equal(np.concatenate(outs, axis), 3 * parts[0])
    with pytest.raises(ValueError, match="cannot be cut for 5 ranks"):
        scattered_shape((6, 4), 0, 5)
