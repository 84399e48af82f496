"""Whole plugins on the CPU: host → library → launches → interpreted kernels, against the dialect's references.

The kernels that the library chooses for an architecture are what its GPUs run, but for the compiler's backend.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpreted import Interpreter, Run, argument
from interpreted_data import BF16, E4M3, F32, I32, Random, close, masked_logits, quantized

from mm2c.dialect import (
    fp8_linear,
    moe_experts_bf16,
    moe_experts_fp8,
    moe_routing,
    paged_attention,
    qk_sum_squares,
)
from mm2c.dialect.blocks import dequantize_reference
from mm2c_plugins.host import Library, PluginError
from mm2c_plugins.host.library import BUILD, NAME
from mm2c_runtime.sampling.draw import draw
from mm2c_runtime.step import SamplingParams

FOLDER = Path(os.environ.get("MM2C_PLUGINS_BUILD", BUILD))
BLOCK = {"block_n": 128, "block_k": 128}

MakeRun = Callable[..., Run]


@pytest.fixture(scope="session")
def library() -> Library:
    if not (FOLDER / NAME).exists():
        pytest.skip(f"no {NAME} in {FOLDER}: `make plugins` builds it")
    return Library(FOLDER)


@pytest.fixture
def make(library: Library) -> Iterator[MakeRun]:
    """make(name, sm=90, **attributes) gives the plugin ready to run; its interpreter keeps the launches."""

    def make_run(name: str, sm: int = 90, **attributes: Any) -> Run:
        if not library.kernels(sm):
            pytest.skip(f"{FOLDER} has no kernels for sm_{sm}")
        interpreter = Interpreter(sm)
        library.pretend_device(sm, sm_count=4)
        library.set_launcher(interpreter)
        return Run(library.create(name, attributes), interpreter)

    yield make_run
    library.set_launcher(None)
    library.pretend_device(0)


@pytest.fixture
def random() -> Random:
    return Random()


@pytest.mark.parametrize(("sm", "tokens"), [(90, 1), (90, 5), (90, 33), (80, 3), (120, 17)])
def test_fp8_linear(make: MakeRun, random: Random, sm: int, tokens: int) -> None:
    weight, scale = quantized(random, 272, 256)
    x = random(tokens, 256)
    run = make("M2Fp8Linear", sm, **BLOCK)
    (y,) = run(x, weight, scale)
    close(y, fp8_linear.reference(x.float(), weight, scale, 128, 128))
    assert run.interpreter.kernels[0] == "fp8_linear"


def test_fp8_linear_with_every_tactic(make: MakeRun, random: Random) -> None:
    weight, scale = quantized(random, 48, 128)
    x = random(2, 128)
    run = make("M2Fp8Linear", 90, **BLOCK)
    wanted = fp8_linear.reference(x.float(), weight, scale, 128, 128)
    variants = set()
    for tactic in run.plugin.tactics():
        close(run(x, weight, scale, tactic=tactic)[0], wanted)
        variants.add(run.interpreter.launches[-1].variant)
    assert len(variants) > 1


@pytest.mark.parametrize(("sm", "stride"), [(90, 1280), (80, 0)])
def test_qk_sum_squares(make: MakeRun, random: Random, sm: int, stride: int) -> None:
    """Of views into a fused projection, and of tensors of their own."""
    q, k = random(2, 3, 1280)[..., :1024].split([768, 256], -1)
    if not stride:
        q, k = q.contiguous(), k.contiguous()
    (s,) = make("M2QkSumSquares", sm, q_stride=stride, k_stride=stride)(q, k)
    close(s, qk_sum_squares.reference(q, k), 1e-5)


def test_add_rms_norm(make: MakeRun, random: Random) -> None:
    x, residual, weight = random(5, 192), random(5, 192), random(192)
    y, total = make("M2AddRmsNorm", eps=1e-6)(x, residual, weight)
    wanted = (x.float() + residual.float()).bfloat16()
    assert torch.equal(total, wanted)
    inverse = torch.rsqrt(wanted.float().square().mean(-1, keepdim=True) + 1e-6)
    close(y, weight.float() * (wanted.float() * inverse).bfloat16().float(), 4e-3)


def attention(
    make: MakeRun,
    random: Random,
    *,
    sm: int,
    pages: int,
    past: list[int],
    new: list[int],
    steps: int,
    kind: torch.dtype,
) -> Run:
    """Run M2PagedAttention on pages in shuffled order and compare; heads 4 over 2."""
    heads, kv_heads, page, rows, context = 4, 2, 64, len(past), 512
    widths = {"heads": heads, "kv_heads": kv_heads, "head_dim": 128, "rotary_dim": 64}
    scalars = {"eps": 1e-6, "scale": 0.088, "q_total": heads * 128, "k_total": kv_heads * 128}
    width = (heads + 2 * kv_heads) * 128
    fused = random(rows, steps, width)
    q, k, v = fused.split([heads * 128, kv_heads * 128, kv_heads * 128], -1)
    s = qk_sum_squares.reference(q, k)
    angles = torch.outer(torch.arange(context).float(), 10000.0 ** -(torch.arange(32) / 32))
    count = rows * pages + 3
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    table = order[: rows * pages].reshape(rows, pages).to(I32)
    for row, length in enumerate(past):
        table[row, (length + max(new[row], 1) - 1) // page + 1 :] = -7  # past a row's last page: anything
    caches = [random(count, page, kv_heads, 128, dtype=F32).to(kind) for _ in range(2)]
    before = [cache.clone() for cache in caches]
    tensors = (s, random(heads * 128), random(kv_heads * 128), angles.cos(), angles.sin())
    lengths = (torch.tensor(past, dtype=I32), torch.tensor(new, dtype=I32), table)
    strides = {f"{name}_stride": width for name in "qkv"}
    run = make("M2PagedAttention", sm, **widths, **scalars, **strides)
    out, k_cache, v_cache = run(q, k, v, *tensors, *lengths, *caches)

    # in f32: the op's own roundings to bf16 are what the tolerance is for; the cache's type is kept
    wanted, k_wanted, v_wanted = paged_attention.reference(
        *(t.float() for t in (q, k, v, *tensors)), *lengths, *before, *widths.values(), *scalars.values()
    )
    for row, real in enumerate(new):
        if real:
            close(out[row, :real], wanted[row, :real], 2e-2 if kind == BF16 else 6e-2)
        assert not out[row, real:].float().any()
    assert torch.equal(v_cache.view(torch.uint8), v_wanted.view(torch.uint8))
    close(k_cache, k_wanted, 1e-2 if kind == BF16 else 0.13)
    untouched = (k_wanted.float() == before[0].float()).flatten(2).all(-1)
    assert torch.equal(k_cache.float()[untouched], before[0].float()[untouched])
    return run


@pytest.mark.parametrize(("sm", "kind"), [(90, BF16), (90, E4M3), (80, E4M3)])
def test_attention_of_one_query(make: MakeRun, random: Random, sm: int, kind: torch.dtype) -> None:
    run = attention(make, random, sm=sm, pages=3, past=[37, 0, 20], new=[1, 1, 0], steps=1, kind=kind)
    assert run.interpreter.kernels[:2] == ["rope_kv", "attention_decode"]


def test_attention_in_parts(make: MakeRun, random: Random) -> None:
    run = attention(make, random, sm=90, pages=8, past=[300, 3], new=[1, 1], steps=1, kind=BF16)
    assert run.interpreter.kernels == ["rope_kv", "attention_decode", "attention_merge"]


@pytest.mark.parametrize(("sm", "kind"), [(90, BF16), (120, E4M3)])
def test_attention_of_many_queries(make: MakeRun, random: Random, sm: int, kind: torch.dtype) -> None:
    run = attention(make, random, sm=sm, pages=3, past=[30, 0], new=[7, 4], steps=7, kind=kind)
    assert run.interpreter.kernels == ["rope_kv", "attention_prefill"]


def test_routing(make: MakeRun, random: Random) -> None:
    logits, bias = random(9, 24, dtype=F32), random(24, scale=0.1, dtype=F32)
    weights, ids = make("M2MoeRouting", top_k=6)(logits, bias)
    weights_wanted, ids_wanted = moe_routing.reference(logits, bias, 6)
    assert torch.equal(ids, ids_wanted)
    close(weights, weights_wanted, 1e-5)


@pytest.mark.parametrize("kind", [BF16, F32])
def test_router(make: MakeRun, random: Random, kind: torch.dtype) -> None:
    x, w = random(5, 192), random(24, 192, scale=0.1, dtype=kind)
    (logits,) = make("M2RouterLinear")(x, w)
    close(logits, x.float() @ w.float().T, 1e-3)


SMALL, PLANNED, LARGE = "moe_small_gate_up", "moe_plan", "moe_count"


@pytest.mark.parametrize(
    ("sm", "tokens", "path"),
    [(90, 3, SMALL), (90, 20, PLANNED), (90, 70, LARGE), (80, 2, SMALL), (80, 12, PLANNED)],
)
def test_routed_experts(make: MakeRun, random: Random, sm: int, tokens: int, path: str) -> None:
    experts = (*quantized(random, 8, 256, 128, parts=2), *quantized(random, 8, 128, 128))
    x, logits, bias = random(tokens, 128), random(tokens, 8, dtype=F32), random(8, scale=0.1, dtype=F32)
    run = make("M2MoeFp8", sm, top_k=2, first_expert=0, **BLOCK)
    (y,) = run(x, logits, bias, *experts)
    weights, ids = moe_routing.reference(logits, bias, 2)
    close(y, moe_experts_fp8.reference(x.float(), weights, ids, *experts, 0, 128, 128), 2e-2)
    assert path in run.interpreter.kernels


@pytest.mark.parametrize(("tokens", "path"), [(2, SMALL), (11, PLANNED), (66, LARGE)])
def test_experts_of_one_rank(make: MakeRun, random: Random, tokens: int, path: str) -> None:
    """Experts 4 to 7 of 12: choices of others contribute nothing. Scale blocks are cut short on both axes."""
    experts = (*quantized(random, 4, 384, 192, parts=2), *quantized(random, 4, 192, 192))
    x = random(tokens, 192)
    weights, ids = moe_routing.reference(random(tokens, 12, dtype=F32), torch.zeros(12), 3)
    run = make("M2MoeExpertsFp8", first_expert=4, **BLOCK)
    (y,) = run(x, weights, ids, *experts)
    wanted = moe_experts_fp8.reference(x.float(), weights, ids, *experts, 4, 128, 128)
    nothing = ((ids < 4) | (ids > 7)).all(-1)
    assert not y[nothing].float().any()
    close(y, wanted, 2e-2)
    assert path in run.interpreter.kernels


@pytest.mark.parametrize(
    ("sm", "tokens", "path", "block_n", "block_k"),
    [
        (90, 2, SMALL, 64, 64),
        (90, 9, PLANNED, 64, 64),
        (90, 2, SMALL, 64, 128),
        (90, 9, PLANNED, 64, 128),
        (90, 66, LARGE, 64, 128),
        (80, 9, PLANNED, 64, 128),
        (90, 2, SMALL, 128, 64),
        (90, 9, PLANNED, 128, 64),
    ],
)
def test_experts_with_divided_blocks(
    make: MakeRun, random: Random, sm: int, tokens: int, path: str, block_n: int, block_k: int
) -> None:
    """An eighth of the released experts, 192 wide, has blocks of 64 along its width alone: w13's are 64 × 128, and
    w2's 128 × 64."""
    upper = quantized(random, 4, 384, 256, parts=2, sides=(block_n, block_k))
    lower = quantized(random, 4, 256, 192, sides=(block_k, block_n))
    x = random(tokens, 256)
    weights, ids = moe_routing.reference(random(tokens, 4, dtype=F32), torch.zeros(4), 2)
    run = make("M2MoeExpertsFp8", sm, first_expert=0, block_n=block_n, block_k=block_k)
    (y,) = run(x, weights, ids, *upper, *lower)
    w13 = dequantize_reference(*upper, block_n, block_k, parts=2)
    w2 = dequantize_reference(*lower, block_k, block_n)
    close(y, moe_experts_bf16.reference(x.float(), weights, ids, w13, w2, 0), 2e-2)
    scaled = (*upper, *lower, 0, block_n, block_k)
    close(y, moe_experts_fp8.reference(x.float(), weights, ids, *scaled), 2e-2)
    assert path in run.interpreter.kernels


@pytest.mark.parametrize("sides", [(64, 64), (64, 128), (128, 64)])
def test_fp8_linear_with_divided_blocks(make: MakeRun, random: Random, sides: tuple[int, int]) -> None:
    weight, scale = quantized(random, 80, 192, sides=sides)
    x = random(9, 192)
    (y,) = make("M2Fp8Linear", block_n=sides[0], block_k=sides[1])(x, weight, scale)
    close(y, fp8_linear.reference(x.float(), weight, scale, *sides))


@pytest.mark.parametrize("tokens", [2, 9])
def test_dense_experts(make: MakeRun, random: Random, tokens: int) -> None:
    w13, w2 = random(4, 128, 64, scale=0.1), random(4, 64, 64, scale=0.1)
    x, logits, bias = random(tokens, 64), random(tokens, 4, dtype=F32), torch.zeros(4)
    (y,) = make("M2MoeBf16", top_k=2, first_expert=0)(x, logits, bias, w13, w2)
    weights, ids = moe_routing.reference(logits, bias, 2)
    close(y, moe_experts_bf16.reference(x.float(), weights, ids, w13, w2, 0), 2e-2)
    (given,) = make("M2MoeExpertsBf16", first_expert=0)(x, weights, ids, w13, w2)
    close(given, y, 1e-2)


ROWS = [  # temperature, top_k, top_p, min_p, uniform
    (0.0, 1, 1.0, 0.0, 0.5),
    (1.0, 20, 0.9, 0.0, 0.3),
    (0.7, 64, 1.0, 0.05, 0.99),
    (1.3, 5, 0.5, 0.0, 0.0),
]


def test_sampling(make: MakeRun, random: Random) -> None:
    logits, mask, masked = masked_logits(random, len(ROWS))
    temperature, top_k, top_p, min_p, uniform = (torch.tensor(column) for column in zip(*ROWS, strict=True))
    columns = (temperature, top_k.to(I32), top_p, min_p, uniform.double().view(torch.int64))
    tokens, status = make("M2Sample", greedy=0, use_mask=1)(logits, mask, *columns)
    wanted = [int(masked[0].argmax())]
    for row, (heat, k, p, least, number) in enumerate(ROWS[1:], 1):
        given = float(torch.tensor(heat)), float(torch.tensor(p)), float(torch.tensor(least))
        params = SamplingParams(temperature=given[0], top_k=k, top_p=given[1], min_p=given[2])
        drawn = draw(masked[row].numpy(), params, float(torch.tensor(number)), np.empty(300))
        wanted.append(drawn)
    assert tokens.tolist() == wanted
    assert status.tolist() == [0] * len(ROWS)


def test_greedy_sampling(make: MakeRun, random: Random) -> None:
    logits, mask, masked = masked_logits(random, len(ROWS))
    logits[1, 7] = math.nan
    mask[2] = 0
    rows = len(logits)
    columns = (torch.zeros(rows), torch.ones(rows, dtype=I32), torch.ones(rows), torch.zeros(rows))
    uniform = torch.zeros(rows, dtype=torch.int64)
    tokens, status = make("M2Sample", greedy=1, use_mask=1)(logits, mask, *columns, uniform)
    assert status.tolist() == [0, 1, 2, 0]
    assert [tokens[0], tokens[3]] == [masked[0].argmax(), masked[3].argmax()]
    tokens, status = make("M2Sample", greedy=1, use_mask=0)(logits, mask, *columns, uniform)
    assert status.tolist() == [0, 1, 0, 0]
    assert tokens[2] == logits[2].argmax()


def test_a_kernel_may_touch_only_what_it_was_given(make: MakeRun, random: Random) -> None:
    """What all these tests rely on to see a workspace that is too small or a write into an input."""
    x, weight = random(2, 64), random(64)
    run = make("M2AddRmsNorm", eps=1e-6)
    y, total = run(x, x, weight)
    short = torch.empty(64, dtype=BF16)
    for outputs in ((y, short), (y, x)):
        described = [argument(y)._replace(pointer=t.data_ptr()) for t in outputs]
        run.interpreter.memory.allow([(x, False), (weight, False), (y, True), (short, True)])
        with pytest.raises(PluginError, match=r"writes \d+ of 64 numbers where it may not"):
            run.op.enqueue([argument(t) for t in (x, x, weight)], described)
    run.interpreter.memory.allow([(x[0].clone(), False), (y, True), (total, True)])
    with pytest.raises(PluginError, match=r"reads 64 of 64 numbers where it may not"):
        run.op.enqueue([argument(t) for t in (x, x, weight)], [argument(t) for t in (y, total)])
