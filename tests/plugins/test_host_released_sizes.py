"""Launches at the released model's widths, whole and on one of two, four or eight ranks, recorded on every device.

An eighth of the experts' width, 192, is no multiple of 128: their scales then serve 64 numbers along that width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from plugin_cases import DEVICES, Recorder, at, bf16, e4m3, f32, i32

from mm2c_plugins.host import TensorSpec

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, HEADS, KV_HEADS, VOCABULARY = 3072, 1536, 256, 8, 48, 8, 200064
PAGE, PAGES, CONTEXT = 64, 65536, 196608
TOKENS = (1, 2, 7, 8, 9, 16, 64, 65, 256, 2048, 8192)

pytestmark = [pytest.mark.parametrize("sm", DEVICES), pytest.mark.parametrize("ranks", [1, 2, 4, 8])]


def launched(
    recorder: Recorder,
    name: str,
    attributes: dict[str, Any],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> list[str]:
    """Run one case within the workspace that the plugin asked for; the kernels."""
    plugin = recorder.library.create(name, attributes)
    assert plugin.outputs(inputs) == list(outputs)
    given, made = at(inputs, 1 << 40), at(outputs, 1 << 44)
    for output, source in plugin.aliases().items():
        made[output] = made[output]._replace(pointer=given[source].pointer)
    size = plugin.workspace(inputs, outputs)
    recorder.launches.clear()
    plugin.attach().enqueue(given, made, 1 << 45)
    # every pointer is a tensor's or lies within the workspace
    known = {tensor.pointer for tensor in (*given, *made)}
    for launch in recorder.launches:
        for letter, value in zip(launch.types, launch.args, strict=True):
            if letter == "p":
                assert value in known or (1 << 45) <= value < (1 << 45) + max(size, 1), (
                    launch.variant,
                    value,
                )
    return recorder.kernels


def test_linears(recorder: Recorder, sm: int, ranks: int) -> None:
    recorder.device(sm)
    block = {"block_n": 128, "block_k": 128}
    fused = (HEADS + 2 * KV_HEADS) * 128 // ranks
    for tokens in TOKENS:
        for n, k in ((fused, HIDDEN), (HIDDEN, HEADS * 128 // ranks)):
            inputs = [bf16(tokens, 1, k), e4m3(n, k), f32(n // 128, k // 128)]
            kernels = launched(recorder, "M2Fp8Linear", block, inputs, [bf16(tokens, 1, n)])
            assert kernels in (["fp8_linear"], ["fp8_linear", "split_sum"])
        inputs = [bf16(tokens, HIDDEN), bf16(EXPERTS, HIDDEN)]
        assert launched(recorder, "M2RouterLinear", {}, inputs, [f32(tokens, EXPERTS)])[0] == "gate_linear"
        row = bf16(tokens, HIDDEN)
        assert launched(recorder, "M2AddRmsNorm", {"eps": 1e-6}, [row, row, bf16(HIDDEN)], [row, row])


def blocks(recorder: Recorder) -> dict[str, tuple[int | float, int | float]]:
    """The sides of scale blocks that each product was launched with, whatever its steps: they divide the blocks."""
    found = {}
    for number, launch in enumerate(recorder.launches):
        values = recorder.values(number)
        if "block_n" in values:
            found[launch.kernel.rpartition("_")[2]] = values["block_n"], values["block_k"]
    return found


@pytest.mark.parametrize("split", ["width", "experts"])
def test_experts(recorder: Recorder, sm: int, ranks: int, split: str) -> None:
    """Each rank a part of every expert's width, or some experts whole."""
    recorder.device(sm)
    width = INTERMEDIATE // ranks if split == "width" else INTERMEDIATE
    local = EXPERTS if split == "width" else EXPERTS // ranks
    side = 128 if width % 128 == 0 else 64
    block = {"block_n": side, "block_k": 128}
    fp8 = [
        e4m3(local, 2 * width, HIDDEN),
        f32(local, 2 * width // side, HIDDEN // 128),
        e4m3(local, HIDDEN, width),
        f32(local, HIDDEN // 128, width // side),
    ]
    dense = [bf16(local, 2 * width, HIDDEN), bf16(local, HIDDEN, width)]
    first = {"first_expert": EXPERTS - local, "top_k": TOP_K}
    for tokens in TOKENS:
        head = [bf16(tokens, HIDDEN), f32(tokens, EXPERTS), f32(EXPERTS)]
        kernels = launched(recorder, "M2MoeFp8", {**first, **block}, [*head, *fp8], head[:1])
        assert kernels[-1] in ("moe_combine", "moe_small_down")
        assert blocks(recorder) == {"up": (side, 128), "down": (128, side)}
        assert launched(recorder, "M2MoeBf16", first, [*head, *dense], head[:1])[-1] == kernels[-1]


@pytest.mark.parametrize("kind", ["bf16", "e4m3"])
def test_attention(recorder: Recorder, sm: int, ranks: int, kind: str) -> None:
    recorder.device(sm)
    heads, kv_heads = HEADS // ranks, KV_HEADS // ranks
    width = (heads + 2 * kv_heads) * 128
    attributes = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": 128,
        "rotary_dim": 64,
        "eps": 1e-6,
        "scale": 0.088,
        "q_total": HEADS * 128,
        "k_total": KV_HEADS * 128,
        "q_stride": width,
        "k_stride": width,
        "v_stride": width,
    }
    cache = TensorSpec(kind, (PAGES, PAGE, kv_heads, 128))
    for rows, steps in ((1, 1), (8, 1), (64, 1), (256, 1), (1, 2048), (4, 512)):
        q, k = bf16(rows, steps, heads * 128), bf16(rows, steps, kv_heads * 128)
        tables = [bf16(heads * 128), bf16(kv_heads * 128), f32(CONTEXT, 32), f32(CONTEXT, 32)]
        lengths = [i32(rows), i32(rows), i32(rows, CONTEXT // PAGE)]
        inputs = [q, k, k, f32(rows, steps, 2), *tables, *lengths, cache, cache]
        kernels = launched(recorder, "M2PagedAttention", attributes, inputs, [q, cache, cache])
        decode = (["rope_kv", "attention_decode"], ["rope_kv", "attention_decode", "attention_merge"])
        assert kernels in (decode if steps == 1 else (["rope_kv", "attention_prefill"],))
        strides = {"q_stride": width, "k_stride": width}
        assert launched(recorder, "M2QkSumSquares", strides, [q, k], [f32(rows, steps, 2)])


def test_sampling(recorder: Recorder, sm: int, ranks: int) -> None:
    recorder.device(sm)
    words = VOCABULARY // 32
    for rows in (1, 64, 256):
        numbers = [f32(rows), i32(rows), f32(rows), f32(rows), TensorSpec("i64", (rows,))]
        inputs = [f32(rows, VOCABULARY), i32(rows, words), *numbers]
        for greedy in (0, 1):
            attributes = {"greedy": greedy, "use_mask": greedy}
            kernels = launched(recorder, "M2Sample", attributes, inputs, [i32(rows), i32(rows)])
            assert kernels == ["sample_chunks", "sample_pick"]
