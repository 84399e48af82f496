"""Launches recorded on pretended devices: kernels, grids and argument values for several numbers of tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
from plugin_cases import (
    CASES,
    CONTEXT,
    DEVICES,
    EXPERTS,
    HEADS,
    HIDDEN,
    KV_HEADS,
    PAGE,
    PAGES,
    TOP_K,
    UNSUPPORTED,
    WIDTH,
    Recorder,
    at,
    attention_inputs,
    attention_outputs,
)

from mm2c_plugins.host import Library, PluginError

TOKENS = (1, 2, 8, 9, 64, 65, 300)
SMS = pytest.mark.parametrize("sm", DEVICES)


def constants(library: Library, sm: int, variant: str) -> dict[str, Any]:
    """A launched kernel's constants."""
    (kernel,) = [k for k in library.kernels(DEVICES[sm]) if k["variant"] == variant]
    found: dict[str, Any] = kernel["constants"]
    return found


@SMS
@pytest.mark.parametrize("name", CASES)
def test_every_launch_fits_its_kernel(library: Library, recorder: Recorder, name: str, sm: int) -> None:
    """The architecture's own kernels, with their argument types, block and shared memory, on the given stream."""
    recorder.device(sm)
    known = {kernel["variant"]: kernel for kernel in library.kernels(DEVICES[sm])}
    for tokens in TOKENS:
        for launch in recorder.run(name, tokens):
            kernel = known[launch.variant]
            assert (launch.kernel, launch.types) == (kernel["kernel"], kernel["types"])
            assert (launch.block, launch.shared) == (kernel["block"], kernel["shared"])
            assert launch.stream == 77
            assert all(0 < n <= most for n, most in zip(launch.grid, (2**31 - 1, 65535, 65535), strict=True))
            assert len(launch.args) == len(launch.types)
        assert recorder.launches


@pytest.mark.parametrize("sm", UNSUPPORTED)
def test_unsupported_devices_are_refused(library: Library, recorder: Recorder, sm: int) -> None:
    with pytest.raises(
        PluginError, match=rf"compute capability {sm // 10}\.{sm % 10} is not supported.* 8\.0.* 12\.0"
    ):
        library.pretend_device(sm)
    recorder.run("M2AddRmsNorm", 2)  # the device that was pretended before stays
    assert recorder.kernels == ["add_rms_norm"]


def test_without_a_device_nothing_is_launched(library: Library, recorder: Recorder) -> None:
    library.pretend_device(0)
    with pytest.raises(PluginError, match="M2AddRmsNorm: "):
        recorder.run("M2AddRmsNorm", 2)
    assert not recorder.launches


@SMS
def test_fp8_linear(library: Library, recorder: Recorder, sm: int) -> None:
    recorder.device(sm)
    for tokens in TOKENS:
        first, *rest = recorder.run("M2Fp8Linear", tokens)
        tile = constants(library, sm, first.variant)
        assert first.grid == (math.ceil(384 / tile["BN"]), math.ceil(tokens / tile["BM"]), tile["SPLIT"])
        values = recorder.values()
        wanted = {"T": tokens, "N": 384, "K": HIDDEN, "block_n": 128, "block_k": 128}
        assert {key: values[key] for key in wanted} == wanted
        x, w, scale = at(CASES["M2Fp8Linear"].inputs(tokens))
        assert (values["x"], values["w"], values["scale"]) == (x.pointer, w.pointer, scale.pointer)
        assert values["y"] == 1 << 24
        assert [launch.kernel for launch in rest] == (["split_sum"] if tile["SPLIT"] > 1 else [])
        if rest:
            values = recorder.values(1)
            assert (values["part"], values["y"]) == (recorder.values()["part"], 1 << 24)
            assert (values["count"], values["splits"]) == (tokens * 384, tile["SPLIT"])


@SMS
def test_each_tactic_is_its_own_kernel(library: Library, recorder: Recorder, sm: int) -> None:
    recorder.device(sm)
    case = CASES["M2Fp8Linear"]
    plugin = library.create("M2Fp8Linear", case.attributes)
    op = plugin.attach()
    chosen = set()
    for tactic in plugin.tactics():
        op.set_tactic(tactic)
        op.enqueue(at(case.inputs(1)), at(case.outputs(1), 1 << 24), 1 << 28)
        chosen.add(
            next(launch.variant for launch in reversed(recorder.launches) if launch.kernel == "fp8_linear")
        )
    assert len(chosen) > 1
    with pytest.raises(PluginError, match="tactic 99"):
        op.set_tactic(99)


@SMS
def test_norms(recorder: Recorder, sm: int) -> None:
    recorder.device(sm)
    for tokens in TOKENS:
        (launch,) = recorder.run("M2AddRmsNorm", tokens)
        assert launch.grid == (tokens, 1, 1)
        assert recorder.values()["C"] == HIDDEN
        assert recorder.values()["eps"] == pytest.approx(1e-6)
        (launch,) = recorder.run("M2QkSumSquares", tokens)
        assert launch.grid[0] == tokens
        wanted = {"q_width": 768, "k_width": 128, "q_stride": 768, "k_stride": 128}
        assert {key: recorder.values()[key] for key in wanted} == wanted
    recorder.run("M2QkSumSquares", 2, q_stride=1024, k_stride=2048)
    assert (recorder.values()["q_stride"], recorder.values()["k_stride"]) == (1024, 2048)


@SMS
def test_attention_of_one_query_a_row(recorder: Recorder, sm: int) -> None:
    recorder.device(sm)
    for rows in (1, 3, 64):
        rope, decode, *rest = recorder.run("M2PagedAttention", rows)
        assert (rope.kernel, decode.kernel) == ("rope_kv", "attention_decode")
        assert rope.grid[0] == rows
        written, read = recorder.values(0), recorder.values(1)
        inputs = at(CASES["M2PagedAttention"].inputs(rows))
        assert (written["k_cache"], written["v_cache"]) == (inputs[11].pointer, inputs[12].pointer)
        assert read["q"] == written["q_out"]  # the workspace
        shared = {"M": CONTEXT // PAGE, "pages": PAGES, "HQ": HEADS, "HK": KV_HEADS}
        assert all(values[key] == value for values in (written, read) for key, value in shared.items())
        assert written["S"] == 1
        assert (written["q_total"], written["k_total"]) == (HEADS * 128, KV_HEADS * 128)
        strides = [written[key] for key in ("q_stride", "k_stride", "v_stride")]
        assert strides == [HEADS * 128, KV_HEADS * 128, KV_HEADS * 128]
        assert read["scale"] == pytest.approx(0.088)
        assert decode.grid == (KV_HEADS, read["splits"], rows)
        assert 1 <= read["splits"] <= 64
        assert [launch.kernel for launch in rest] == (["attention_merge"] if read["splits"] > 1 else [])
        if rest:
            assert rest[0].grid == (rows * HEADS, 1, 1)
            merged = recorder.values(2)
            assert (merged["part"], merged["lse"], merged["out"]) == (read["part"], read["lse"], 1 << 24)


@SMS
def test_attention_of_many_queries(library: Library, recorder: Recorder, sm: int) -> None:
    recorder.device(sm)
    for steps in (2, 17, 200):
        inputs, outputs = at(attention_inputs(3, steps)), at(attention_outputs(3, steps), 1 << 24)
        outputs[1:] = [
            t._replace(pointer=inputs[n].pointer) for t, n in zip(outputs[1:], (11, 12), strict=True)
        ]
        recorder.launches.clear()
        recorder.op("M2PagedAttention").enqueue(inputs, outputs, 1 << 28)
        assert recorder.kernels == ["rope_kv", "attention_prefill"]
        prefill = recorder.launches[1]
        tile = constants(library, sm, prefill.variant)
        assert prefill.grid == (math.ceil(steps / tile["BM"]), HEADS, 3)
        assert recorder.launches[0].grid[0] == 3 * steps
        assert recorder.values(1)["S"] == steps


@SMS
@pytest.mark.parametrize("name", ["M2MoeFp8", "M2MoeBf16", "M2MoeExpertsFp8", "M2MoeExpertsBf16"])
def test_experts_by_number_of_tokens(library: Library, recorder: Recorder, name: str, sm: int) -> None:
    """Two launches for few tokens; one plan up to 64 tokens; beyond, a plan in parts."""
    recorder.device(sm)
    routed = name in ("M2MoeFp8", "M2MoeBf16")
    recorder.run(name, 1)
    assert recorder.kernels == ["moe_small_gate_up", "moe_small_down"]
    recorder.run(name, 64)
    assert recorder.kernels == ["moe_plan", "moe_gate_up", "moe_down", "moe_combine"]
    assert constants(library, sm, recorder.launches[0].variant)["ROUTE"] == routed
    recorder.run(name, 65)
    plan = ["moe_routing"] * routed + ["moe_count", "moe_offsets", "moe_scatter"]
    assert recorder.kernels == [*plan, "moe_gate_up", "moe_down", "moe_combine"]
    for tokens in TOKENS:
        recorder.run(name, tokens)
        for number, launch in enumerate(recorder.launches):
            values = recorder.values(number)
            wanted = {"C": HIDDEN, "I": WIDTH, "K": TOP_K, "first_expert": 0, "E_local": EXPERTS}
            assert {key: values[key] for key in wanted if key in values} == {
                key: value for key, value in wanted.items() if key in values
            }
            tile = constants(library, sm, launch.variant)
            if launch.kernel in ("moe_gate_up", "moe_down"):
                pairs = tokens * TOP_K
                tiles = min(pairs, EXPERTS) + pairs // tile["BM"]
                width = WIDTH if launch.kernel == "moe_gate_up" else HIDDEN
                assert launch.grid == (math.ceil(width / tile["BN"]), tiles, 1)
            if launch.kernel == "moe_combine":
                assert launch.grid == (math.ceil(HIDDEN / tile["BC"]), tokens, 1)
                assert values["out"] == 1 << 24


@SMS
def test_experts_of_a_rank(recorder: Recorder, sm: int) -> None:
    recorder.device(sm)
    for tokens in (1, 64, 65):
        recorder.run("M2MoeExpertsFp8", tokens, first_expert=48)
        assert 48 in [recorder.values(n).get("first_expert") for n in range(len(recorder.launches))]


@SMS
def test_routing_router_and_sampling(library: Library, recorder: Recorder, sm: int) -> None:
    recorder.device(sm)
    for tokens in TOKENS:
        (launch,) = recorder.run("M2MoeRouting", tokens)
        assert launch.grid[0] == math.ceil(tokens / constants(library, sm, launch.variant)["ROWS"])
        values = recorder.values()
        assert (values["T"], values["E"], values["K"]) == (tokens, EXPERTS, TOP_K)
        launch = recorder.run("M2RouterLinear", tokens)[0]
        values = recorder.values()
        assert launch.kernel == "gate_linear"
        assert (values["T"], values["C"], values["E"]) == (tokens, HIDDEN, EXPERTS)
        chunks, pick = recorder.run("M2Sample", tokens)
        assert (chunks.kernel, pick.kernel) == ("sample_chunks", "sample_pick")
        parts = math.ceil(1000 / constants(library, sm, chunks.variant)["CHUNK"])
        assert (chunks.grid, pick.grid) == ((parts, tokens, 1), (tokens, 1, 1))
        assert (recorder.values()["V"], recorder.values()["W"], recorder.values()["use_mask"]) == (
            1000,
            32,
            1,
        )
        assert recorder.values(1)["P"] == parts


def test_greedy_sampling_takes_the_short_way(library: Library, recorder: Recorder) -> None:
    recorder.run("M2Sample", 2, greedy=1)
    assert [constants(library, 90, launch.variant)["KC"] for launch in recorder.launches] == [1, 1]


@pytest.mark.parametrize("name", CASES)
def test_no_tokens_no_launch(recorder: Recorder, name: str) -> None:
    assert recorder.run(name, 0) == []
