"""What the builder asks: shapes, types, formats, aliases, tactics and workspace."""

from __future__ import annotations

import pytest
from plugin_cases import CASES, DEVICES, Recorder, attention_inputs, attention_outputs, e4m3

from mm2c_plugins.host import Extent, Library, PluginError, TensorSpec
from mm2c_plugins.host.tensors import DTYPES

PROFILE = Extent(1, 8, 300)
WRONG = {"bf16": {"f32", "f16", "e4m3", "i32"}, "i32": {"i64", "f32"}}


@pytest.mark.parametrize("name", CASES)
def test_static_shapes_and_types(library: Library, name: str) -> None:
    case = CASES[name]
    plugin = library.create(name, case.attributes)
    for tokens in (1, 3, 300):
        assert plugin.outputs(case.inputs(tokens)) == case.outputs(tokens)
    inputs = case.inputs(2)
    shapes, dtypes = [t.shape for t in inputs], [t.dtype for t in inputs]
    assert plugin.output_shapes(shapes, dtypes) == [t.shape for t in case.outputs(2)]
    assert plugin.output_dtypes(dtypes) == [t.dtype for t in case.outputs(2)]


@pytest.mark.parametrize("name", CASES)
def test_unknown_extents_stay_unknown(library: Library, name: str) -> None:
    """An output's extent is the input's expression, not a number taken from it."""
    case = CASES[name]
    assert library.create(name, case.attributes).outputs(case.inputs(PROFILE)) == case.outputs(PROFILE)


def test_both_axes_of_attention_may_be_unknown(library: Library) -> None:
    plugin = library.create("M2PagedAttention", CASES["M2PagedAttention"].attributes)
    rows, steps = Extent(1, 4, 8), Extent(1, 1, 128)
    assert plugin.outputs(attention_inputs(rows, steps)) == attention_outputs(rows, steps)


@pytest.mark.parametrize("name", CASES)
def test_wrong_numbers_of_inputs(library: Library, name: str) -> None:
    case = CASES[name]
    plugin = library.create(name, case.attributes)
    inputs, outputs = case.inputs(2), case.outputs(2)
    for wrong in (inputs[:-1], [*inputs, inputs[0]]):
        with pytest.raises(PluginError, match=f"{name}: .*inputs"):
            plugin.outputs(wrong)
        assert not plugin.supports([*wrong, *outputs])
        with pytest.raises(
            PluginError, match=f"{name}: does not take input 0 as .*another number of tensors"
        ):
            plugin.check([*wrong, *outputs])


@pytest.mark.parametrize("name", CASES)
def test_wrong_ranks(library: Library, name: str) -> None:
    case = CASES[name]
    plugin = library.create(name, case.attributes)
    for position, spec in enumerate(inputs := case.inputs(2)):
        wrong = [*inputs[:position], spec._replace(shape=()), *inputs[position + 1 :]]
        with pytest.raises(PluginError, match=f"{name}: .*dimension"):
            plugin.outputs(wrong)


@pytest.mark.parametrize("name", CASES)
def test_types_are_negotiated_at_every_position(library: Library, name: str) -> None:
    case = CASES[name]
    plugin = library.create(name, case.attributes)
    right = [*case.inputs(2), *case.outputs(2)]
    assert plugin.supports(right)
    plugin.check(right)
    for position, spec in enumerate(right):
        others = {"bf16": {"f32", "f16", "e4m3", "i32"}, "i32": {"i64", "f32"}}.get(
            spec.dtype, set(DTYPES) - {spec.dtype}
        )
        for dtype in others - taken_elsewhere(name, position):
            wrong = [*right[:position], spec._replace(dtype=dtype), *right[position + 1 :]]
            assert not plugin.supports(wrong), (position, dtype)
        for layout in ("chw2", "hwc8", "chw32"):
            assert not plugin.supports(
                [*right[:position], spec._replace(format=layout), *right[position + 1 :]]
            )


def taken_elsewhere(name: str, position: int) -> set[str]:
    """Types beside the case's that a position takes too: the cache of M2PagedAttention and the router's weight."""
    if name == "M2RouterLinear" and position == 1:
        return {"bf16"}
    return {"e4m3", "bf16"} if name == "M2PagedAttention" and position in (11, 12, 14, 15) else set()


def test_a_refused_type_is_explained(library: Library) -> None:
    case = CASES["M2Fp8Linear"]
    plugin = library.create("M2Fp8Linear", case.attributes, layer="layers.0.q_proj")
    x, w, scale = case.inputs(2)
    with pytest.raises(PluginError) as raised:
        plugin.check([x, w._replace(dtype="bf16"), scale, *case.outputs(2)])
    assert str(raised.value) == (
        "layers.0.q_proj (M2Fp8Linear): does not take input 1 as bf16 [384, 256], linear; it expects e4m3, linear"
    )


def test_both_types_of_cache(library: Library) -> None:
    plugin = library.create("M2PagedAttention", CASES["M2PagedAttention"].attributes)
    for page in (16, 64):
        cache = e4m3(40, page, 2, 128)
        inputs, outputs = attention_inputs(2, 1, cache), attention_outputs(2, 1, cache)
        assert plugin.outputs(inputs) == outputs
        assert plugin.supports([*inputs, *outputs])
        mixed = [*inputs[:-1], inputs[-1]._replace(dtype="bf16"), *outputs]
        assert not plugin.supports(mixed)


@pytest.mark.parametrize("name", CASES)
def test_aliases(library: Library, name: str) -> None:
    """Attention updates its caches in place; nothing else shares memory."""
    aliases = library.create(name, CASES[name].attributes).aliases()
    assert aliases == ({1: 11, 2: 12} if name == "M2PagedAttention" else {})


@pytest.mark.parametrize("sm", DEVICES)
def test_tactics_are_numbered_from_one(library: Library, recorder: Recorder, sm: int) -> None:
    recorder.device(sm)
    for name, case in CASES.items():
        tactics = library.create(name, case.attributes).tactics()
        assert tactics == list(range(1, len(tactics) + 1))
    linear = library.create("M2Fp8Linear", CASES["M2Fp8Linear"].attributes)
    assert linear.tactics()


@pytest.mark.parametrize("sm", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_workspace_grows_with_the_profile(library: Library, recorder: Recorder, name: str, sm: int) -> None:
    recorder.device(sm)
    case = CASES[name]
    plugin = library.create(name, case.attributes)
    sizes = []
    for most in (1, 2, 8, 9, 64, 65, 300, 4096):
        sizes.append(plugin.workspace(case.inputs(Extent(1, 1, most)), case.outputs(Extent(1, 1, most))))
        assert plugin.workspace(case.inputs(most), case.outputs(most)) == sizes[-1]
    assert sizes == sorted(sizes)
    assert sizes[-1] < 2**30


def test_workspace_refuses_wrong_types(library: Library, recorder: Recorder) -> None:
    case = CASES["M2Fp8Linear"]
    plugin = library.create("M2Fp8Linear", case.attributes)
    x, w, scale = case.inputs(2)
    with pytest.raises(PluginError, match="M2Fp8Linear: w cannot be"):
        plugin.workspace([x, w._replace(dtype="bf16"), scale], case.outputs(2))


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (TensorSpec("bf17", (2, 256)), "'bf17' is no tensor type; the types are f32"),
        (TensorSpec("bf16", (1,) * 9), "9 dimensions; TensorRT takes at most 8"),
        (TensorSpec("bf16", (-1, 256)), "negative"),
        (TensorSpec("bf16", (Extent(4, 2, 8), 256)), "out of order"),
        (TensorSpec("bf16", (2, 256), "nchw"), "'nchw' is no tensor format"),
    ],
)
def test_what_is_no_tensor(library: Library, spec: TensorSpec, complaint: str) -> None:
    case = CASES["M2Fp8Linear"]
    plugin = library.create("M2Fp8Linear", case.attributes)
    with pytest.raises(PluginError, match=complaint):
        plugin.supports([spec, *case.inputs(2)[1:], *case.outputs(2)])
