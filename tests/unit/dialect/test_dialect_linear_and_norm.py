"""M2Fp8Linear, M2QkSumSquares and DistCollective: bodies against references."""

from __future__ import annotations

import pytest
import torch
from function_body import assert_agree, run_body


@pytest.mark.parametrize(
    ("n", "k", "block_n", "block_k", "lead"),
    [
        (128, 128, 128, 128, (3,)),
        (256, 384, 128, 128, (2, 3)),
        (192, 256, 64, 128, (1, 1)),
        (70, 130, 32, 64, (4,)),
        (1, 7, 128, 128, (2, 5)),
        (129, 127, 128, 128, (1, 9)),
        (96, 40, 16, 8, (2, 2, 3)),
    ],
)
def test_fp8_linear(n: int, k: int, block_n: int, block_k: int, lead: tuple[int, ...]) -> None:
    torch.manual_seed(n + k)
    weight = torch.randn(n, k).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-n // block_n), -(-k // block_k)) + 0.1
    x = torch.randn(*lead, k)
    y = assert_agree("M2Fp8Linear", [x, weight, scale], block_n=block_n, block_k=block_k)[0]
    exact = torch.zeros(n, k, dtype=torch.float64)
    for row in range(n):
        for column in range(k):
            exact[row, column] = (
                weight[row, column].double() * scale[row // block_n, column // block_k].double()
            )
    torch.testing.assert_close(y.double(), x.double() @ exact.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "shape", [(1, 1, 8, 8), (2, 3, 96, 32), (3, 1, 6144, 1024), (1, 17, 5, 1), (4, 2, 33, 7), (1, 1, 1, 3)]
)
def test_sums_of_squares(shape: tuple[int, int, int, int]) -> None:
    batch, steps, q, k = shape
    torch.manual_seed(q)
    assert_agree("M2QkSumSquares", [torch.randn(batch, steps, q), torch.randn(batch, steps, k)])


@pytest.mark.parametrize("operation", ["all_reduce", "all_gather"])
def test_a_collective_over_one_rank_changes_nothing(operation: str) -> None:
    x = torch.randn(2, 3, 4)
    y = assert_agree(
        "DistCollective",
        [x],
        collective_operation=operation,
        reduce_op="sum",
        root=-1,
        nb_rank=1,
        groups=[0],
        group_size=1,
        axis=2,
    )[0]
    torch.testing.assert_close(y, x, rtol=0, atol=0)


def test_a_gather_over_ranks_widens_its_axis() -> None:
    from mm2c import dialect

    op = dialect.ops["DistCollective"].register_torch().op
    x = torch.empty(2, 3, 4, device="meta")
    assert op(x, "all_gather", "sum", -1, 4, [0, 1, 2, 3], 4, 2).shape == (2, 3, 16)
    assert op(x, "all_reduce", "sum", -1, 4, [0, 1, 2, 3], 4, 2).shape == (2, 3, 4)


def test_half_precision_activations_keep_their_type() -> None:
    x, weight = torch.randn(2, 8).half(), torch.randn(4, 8).to(torch.float8_e4m3fn)
    from mm2c import dialect

    y = dialect.ops["M2Fp8Linear"].register_torch().op(x, weight, torch.ones(1, 1), 128, 128)
    assert y.dtype == torch.float16
    assert run_body("M2QkSumSquares", [x[None], x[None]])[0].dtype == torch.float32
