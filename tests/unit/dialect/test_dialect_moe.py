"""M2MoeRouting and the two expert ops: bodies against references."""

from __future__ import annotations

import pytest
import torch
from function_body import assert_agree


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k"), [(1, 8, 2), (5, 8, 8), (3, 7, 1), (64, 256, 8), (2, 1, 1), (9, 33, 5)]
)
def test_routing(tokens: int, experts: int, top_k: int) -> None:
    torch.manual_seed(tokens)
    logits, bias = 3 * torch.randn(tokens, experts), torch.randn(experts)
    weights, ids = assert_agree("M2MoeRouting", [logits, bias], top_k=top_k)
    torch.testing.assert_close(weights.sum(1), torch.ones(tokens))
    assert all(len(set(row)) == top_k for row in ids.tolist())


def test_the_bias_chooses_but_does_not_weigh() -> None:
    weights, ids = assert_agree(
        "M2MoeRouting", [torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([9.0, 0.0, 0.0])], top_k=2
    )
    assert ids.tolist() == [[0, 2]]
    scores = torch.sigmoid(torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(weights[0], scores / scores.sum())


def test_equal_scores_go_to_the_lower_expert() -> None:
    _, ids = assert_agree("M2MoeRouting", [torch.zeros(2, 6), torch.zeros(6)], top_k=3)
    assert ids.tolist() == [[0, 1, 2]] * 2


# tokens, hidden, intermediate, local experts, top_k, first expert, all experts
SHAPES = [
    (1, 16, 24, 4, 2, 0, 4),
    (5, 40, 24, 4, 3, 2, 8),
    (33, 128, 64, 8, 2, 0, 8),
    (7, 33, 17, 3, 3, 0, 3),
    (100, 24, 40, 6, 4, 6, 12),
    (2, 256, 192, 2, 1, 1, 3),
]


def choices(tokens: int, top_k: int, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.stack([torch.randperm(experts)[:top_k] for _ in range(tokens)]).to(torch.int32)
    weights = torch.rand(tokens, top_k)
    return weights / weights.sum(1, keepdim=True), ids


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_dense_experts(shape: tuple[int, ...], stored: torch.dtype) -> None:
    tokens, hidden, inner, count, top_k, first, experts = shape
    torch.manual_seed(tokens)
    w13 = (torch.randn(count, 2 * inner, hidden) / hidden**0.5).to(stored)
    w2 = (torch.randn(count, hidden, inner) / inner**0.5).to(stored)
    x = torch.randn(tokens, hidden)
    weights, ids = choices(tokens, top_k, experts)
    y = assert_agree("M2MoeExpertsBf16", [x, weights, ids, w13, w2], first_expert=first)[0]
    exact = torch.zeros(tokens, hidden, dtype=torch.float64)
    for t in range(tokens):
        for place in range(top_k):
            e = int(ids[t, place]) - first
            if 0 <= e < count:
                gate, up = (w13[e].double() @ x[t].double()).chunk(2)
                inner_state = torch.nn.functional.silu(gate) * up
                exact[t] += weights[t, place].double() * (w2[e].double() @ inner_state)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [(128, 128), (64, 128), (16, 8)])
def test_fp8_experts(shape: tuple[int, ...], block: tuple[int, int]) -> None:
    tokens, hidden, inner, count, top_k, first, experts = shape
    torch.manual_seed(tokens)
    n, k = block
    w13 = torch.randn(count, 2 * inner, hidden).to(torch.float8_e4m3fn)
    w2 = torch.randn(count, hidden, inner).to(torch.float8_e4m3fn)
    w13_scale = (torch.rand(count, 2 * -(-inner // n), -(-hidden // k)) + 0.1) / hidden**0.5
    w2_scale = (torch.rand(count, -(-hidden // k), -(-inner // n)) + 0.1) / inner**0.5
    weights, ids = choices(tokens, top_k, experts)
    x = torch.randn(tokens, hidden)
    inputs = [x, weights, ids, w13, w13_scale, w2, w2_scale]
    assert_agree("M2MoeExpertsFp8", inputs, first_expert=first, block_n=n, block_k=k)


def test_gate_and_up_have_blocks_of_their_own() -> None:
    w13 = torch.ones(1, 2 * 3, 4).to(torch.float8_e4m3fn)
    w2 = torch.eye(4, 3)[None].to(torch.float8_e4m3fn)
    scale = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])  # blocks of 2 rows: gate 2 + 1, up 2 + 1
    ones = torch.ones(1, 1)
    y = assert_agree(
        "M2MoeExpertsFp8",
        [
            torch.full((1, 4), 0.25),
            ones,
            torch.zeros(1, 1, dtype=torch.int32),
            w13,
            scale,
            w2,
            torch.ones(1, 1, 2),
        ],
        first_expert=0,
        block_n=2,
        block_k=4,
    )[0]
    silu = torch.nn.functional.silu
    gate, up = torch.tensor([1.0, 1.0, 2.0]), torch.tensor([3.0, 3.0, 4.0])
    torch.testing.assert_close(y[0, :3], silu(gate) * up)


@pytest.mark.parametrize("first", [0, 3, 8])
def test_all_tokens_on_one_expert(first: int) -> None:
    torch.manual_seed(0)
    x, ids = torch.randn(17, 12), torch.full((17, 1), 3, dtype=torch.int32)
    inputs = [x, torch.ones(17, 1), ids, torch.randn(5, 16, 12), torch.randn(5, 12, 8)]
    y = assert_agree("M2MoeExpertsBf16", inputs, first_expert=first)[0]
    if first == 8:
        assert not y.any()
    else:
        assert y.any(1).all()
