"""The workspace of a plan against what the plugin library itself asks for, at the released model's sizes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_plan_layouts import M27

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins"))
from plugin_cases import bf16, e4m3, f32, i32

from mm2c.config import Mapping
from mm2c.plan.step import cuda_step, kv_heads_of
from mm2c_plugins.host import Library, TensorSpec
from mm2c_plugins.host.library import BUILD, NAME

DEVICES = {80: 108, 90: 132, 100: 148, 120: 188}  # multiprocessors of the largest


@pytest.fixture(scope="module")
def library() -> Iterator[Library]:
    if not (BUILD / NAME).exists():
        pytest.skip(f"no {NAME} in {BUILD}: `make plugins` builds it")
    found = Library(BUILD)
    yield found
    found.pretend_device(0)


def asked(library: Library, mapping: Mapping, tokens: int, rows: int) -> int:
    """The most that one plugin of a rank asks for."""
    heads, kv = M27.heads // mapping.tp, kv_heads_of(M27, mapping)
    width, inner = (heads + 2 * kv) * 128, M27.intermediate // mapping.moe_tp
    local, gathered = M27.experts // mapping.ep, mapping.attention_dp * tokens
    side = math.gcd(128, inner)
    sizes = []
    for n, k in ((width, M27.hidden), (M27.hidden, heads * 128)):
        linear = library.create("M2Fp8Linear", {"block_n": 128, "block_k": 128})
        sizes.append(
            linear.workspace([bf16(tokens, 1, k), e4m3(n, k), f32(n // 128, k // 128)], [bf16(tokens, 1, n)])
        )
    head = [bf16(gathered, M27.hidden), f32(gathered, M27.experts), f32(M27.experts)]
    weights = [
        e4m3(local, 2 * inner, M27.hidden),
        f32(local, 2 * inner // side, M27.hidden // 128),
        e4m3(local, M27.hidden, inner),
        f32(local, M27.hidden // 128, inner // side),
    ]
    options = {"first_expert": 0, "top_k": M27.top_k, "block_n": side, "block_k": 128}
    sizes.append(library.create("M2MoeFp8", options).workspace([*head, *weights], head[:1]))
    attention = {
        "heads": heads, "kv_heads": kv, "head_dim": 128, "rotary_dim": 64, "eps": 1e-6, "scale": 0.088,
        "q_total": M27.q_width, "k_total": M27.kv_width, "q_stride": width, "k_stride": width, "v_stride": width,
    }  # fmt: skip
    cache = TensorSpec("bf16", (4096, 64, kv, 128))
    for batch, steps in ((1, tokens), (rows, 1)):
        q, k = bf16(batch, steps, heads * 128), bf16(batch, steps, kv * 128)
        table = f32(M27.context, 32)
        inputs = [q, k, k, f32(batch, steps, 2), bf16(heads * 128), bf16(kv * 128), table, table]
        inputs += [i32(batch), i32(batch), i32(batch, 3200), cache, cache]
        sizes.append(library.create("M2PagedAttention", attention).workspace(inputs, [q, cache, cache]))
    return max(sizes)


@pytest.mark.parametrize("sm", DEVICES)
@pytest.mark.parametrize("mapping", [Mapping(1), Mapping(4), Mapping(4, 4), Mapping(8), Mapping(1, 8, 8)])
@pytest.mark.parametrize(("tokens", "rows"), [(512, 8), (64, 64), (4096, 256)])
def test_the_bound_holds_and_is_near(
    library: Library, sm: int, mapping: Mapping, tokens: int, rows: int
) -> None:
    library.pretend_device(sm, DEVICES[sm])
    planned = cuda_step(M27, mapping, context=M27.context, rows=rows, chunk=tokens, page=64).workspace
    needed = asked(library, mapping, tokens, rows)
    assert needed <= planned <= needed + (4 << 20)
