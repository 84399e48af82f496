"""What a plugin will not run: refused with a readable reason and before any launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from plugin_cases import CASES, Recorder, at, attention_inputs, attention_outputs, bf16, e4m3, f32, i32

from mm2c_plugins.host import PluginError, TensorSpec


def refuses(
    recorder: Recorder,
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    complaint: str,
    **changed: Any,
) -> None:
    """The op says ``complaint`` of these tensors, when told their shapes and when launched."""
    op = recorder.op(name, **changed)
    given, made = at(inputs), at(outputs, 1 << 24)
    for output, source in recorder.library.create(name, CASES[name].attributes).aliases().items():
        if source < len(given):
            made[output] = made[output]._replace(pointer=given[source].pointer)
    with pytest.raises(PluginError, match=rf"^{name}: .*{complaint}"):
        op.shape_change(inputs, outputs)
    with pytest.raises(PluginError, match=rf"^{name}: .*{complaint}"):
        op.enqueue(given, made, 1 << 28)
    assert not recorder.launches


@pytest.mark.parametrize("name", CASES)
def test_misaligned_pointers(recorder: Recorder, name: str) -> None:
    case = CASES[name]
    inputs, outputs = at(case.inputs(3)), at(case.outputs(3), 1 << 24)
    op = recorder.op(name)
    aliases = recorder.library.create(name, case.attributes).aliases()
    for position in range(len(inputs)):
        moved = [t._replace(pointer=t.pointer + 8) if n == position else t for n, t in enumerate(inputs)]
        made = [
            t._replace(pointer=moved[aliases[n]].pointer) if n in aliases else t
            for n, t in enumerate(outputs)
        ]
        with pytest.raises(PluginError, match=rf"^{name}: .* aligned to 16 bytes"):
            op.enqueue(moved, made, 1 << 28)
    for position in range(len(outputs)):
        made = [t._replace(pointer=t.pointer + 2) if n == position else t for n, t in enumerate(outputs)]
        with pytest.raises(PluginError, match=rf"^{name}: "):
            op.enqueue(inputs, made, 1 << 28)
    assert not recorder.launches


@pytest.mark.parametrize("name", CASES)
def test_missing_memory(recorder: Recorder, name: str) -> None:
    case = CASES[name]
    inputs, outputs = at(case.inputs(3)), at(case.outputs(3), 1 << 24)
    with pytest.raises(PluginError, match=rf"^{name}: .* has no memory"):
        recorder.op(name).enqueue([inputs[0]._replace(pointer=0), *inputs[1:]], outputs, 1 << 28)
    assert not recorder.launches


@pytest.mark.parametrize("tokens", [1, 64, 65])
@pytest.mark.parametrize("name", CASES)
def test_missing_workspace(recorder: Recorder, name: str, tokens: int) -> None:
    """Where a launch needs workspace it says so; a misaligned one is refused too."""
    case = CASES[name]
    plugin = recorder.library.create(name, case.attributes)
    inputs, outputs = at(case.inputs(tokens)), at(case.outputs(tokens), 1 << 24)
    for output, source in plugin.aliases().items():
        outputs[output] = outputs[output]._replace(pointer=inputs[source].pointer)
    if not plugin.workspace(inputs, outputs):
        plugin.attach().enqueue(inputs, outputs, 0)
        return
    with pytest.raises(PluginError, match=rf"^{name}: .*workspace"):
        plugin.attach().enqueue(inputs, outputs, (1 << 28) + 8)
    assert not recorder.launches


@pytest.mark.parametrize("name", CASES)
def test_wrong_types(recorder: Recorder, name: str) -> None:
    case = CASES[name]
    inputs, outputs = case.inputs(3), case.outputs(3)
    for position, spec in enumerate(inputs):
        wrong = [*inputs[:position], spec._replace(dtype="bool"), *inputs[position + 1 :]]
        refuses(recorder, name, wrong, outputs, "cannot be bool")


@pytest.mark.parametrize("name", CASES)
def test_wrong_numbers_of_tensors(recorder: Recorder, name: str) -> None:
    case = CASES[name]
    refuses(recorder, name, case.inputs(3)[:-1], case.outputs(3), r"inputs and \d outputs, got")
    refuses(recorder, name, case.inputs(3), [*case.outputs(3), f32(1)], r"inputs and \d outputs, got")


@pytest.mark.parametrize("name", CASES)
def test_shapes_that_do_not_fit_each_other(recorder: Recorder, name: str) -> None:
    """Any last extent of any tensor but the first one's made another."""
    case = CASES[name]
    inputs, outputs = case.inputs(3), case.outputs(3)
    for position, spec in enumerate(both := [*inputs, *outputs]):
        if (name, position) in FREE:
            continue
        *lead, last = spec.shape
        wrong = [*both[:position], spec._replace(shape=(*lead, int(last) + 64)), *both[position + 1 :]]
        refuses(recorder, name, wrong[: len(inputs)], wrong[len(inputs) :], "")


# Tensors whose last extent may be any multiple of 64: the widths of q and k, and pages a row may have
FREE = {("M2QkSumSquares", 0), ("M2QkSumSquares", 1), ("M2PagedAttention", 10)}


@pytest.mark.parametrize(
    ("inputs", "outputs", "complaint"),
    [
        ([bf16(3, 96), e4m3(384, 96), f32(3, 1)], [bf16(3, 384)], "width of x .*64"),
        ([bf16(3, 256), e4m3(100, 256), f32(1, 2)], [bf16(3, 100)], "height of w .*16"),
        ([bf16(3, 256), e4m3(384, 256), f32(2, 2)], [bf16(3, 384)], "scale"),
        ([bf16(3, 256), e4m3(384, 192), f32(3, 2)], [bf16(3, 384)], "w"),
    ],
)
def test_fp8_linear(
    recorder: Recorder, inputs: list[TensorSpec], outputs: list[TensorSpec], complaint: str
) -> None:
    refuses(recorder, "M2Fp8Linear", inputs, outputs, complaint)


def test_more_choices_than_experts(recorder: Recorder) -> None:
    refuses(recorder, "M2MoeRouting", [f32(3, 2), f32(2)], [f32(3, 4), i32(3, 4)], "top_k")
    weights = [e4m3(2, 256, 256), f32(2, 2, 2), e4m3(2, 256, 128), f32(2, 2, 1)]
    refuses(recorder, "M2MoeFp8", [bf16(3, 256), f32(3, 2), f32(2), *weights], [bf16(3, 256)], "top_k")


def test_more_experts_than_the_kernels_hold(recorder: Recorder) -> None:
    refuses(recorder, "M2MoeRouting", [f32(3, 257), f32(257)], [f32(3, 4), i32(3, 4)], "256")


def test_experts_beyond_those_that_are_routed_to(recorder: Recorder) -> None:
    case = CASES["M2MoeFp8"]
    refuses(recorder, "M2MoeFp8", case.inputs(3), case.outputs(3), "expert", first_expert=8)


@pytest.mark.parametrize(("hidden", "width"), [(96, 128), (256, 96)])
def test_widths_of_experts(recorder: Recorder, hidden: int, width: int) -> None:
    weights = [bf16(16, 2 * width, hidden), bf16(16, hidden, width)]
    inputs = [bf16(3, hidden), f32(3, 4), i32(3, 4), *weights]
    refuses(recorder, "M2MoeExpertsBf16", inputs, [bf16(3, hidden)], "64")


def test_pages_of_another_size(recorder: Recorder) -> None:
    cache = bf16(40, 16, 2, 128)
    refuses(
        recorder, "M2PagedAttention", attention_inputs(2, 1, cache), attention_outputs(2, 1, cache), "page"
    )


def test_caches_must_be_updated_in_place(recorder: Recorder) -> None:
    inputs, outputs = at(attention_inputs(2, 1)), at(attention_outputs(2, 1), 1 << 24)
    with pytest.raises(PluginError, match="k_cache_out must lie where k_cache does"):
        recorder.op("M2PagedAttention").enqueue(inputs, outputs, 1 << 28)
    assert not recorder.launches


def test_strides_that_break_alignment(recorder: Recorder) -> None:
    case = CASES["M2QkSumSquares"]
    refuses(recorder, "M2QkSumSquares", case.inputs(2), case.outputs(2), "q_stride", q_stride=776)
