"""What TensorRT's parser gets wrong without a word: ONNX Runtime and the replay must see it differently."""

from __future__ import annotations

import network_plans as plans
import networks as nets
import onnx
import pytest
import torch
from onnx import FunctionProto, helper

node = helper.make_node
F32 = torch.float32
WRONG = 1e-2  # of the largest number; what agrees, agrees to 1e-5


def test_the_parser_drops_the_number_of_valid_keys() -> None:
    """Attention's input 6, nonpad_kv_seqlen: ONNX Runtime leaves out the keys behind it, the network has no trace of
    it, nor a warning."""
    from mm2c.engine.tensorrt.parse import make_logger, parse_network

    inputs = {
        "q": torch.randn(2, 4, 1, 8, generator=torch.Generator().manual_seed(0)),
        "k": torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(1)),
        "v": torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(2)),
        "valid": torch.tensor([2, 5]),
    }
    attention = node("Attention", ["q", "k", "v", "", "", "", "valid"], ["y"])
    model = nets.model_of([attention], inputs, {"y": F32}, dynamic=False)
    said: list[str] = []
    logger = make_logger(nets.rtx(), lambda severity, text: said.append(text))
    parse_network(nets.rtx(), model.SerializeToString(), logger)
    assert not any("nonpad" in text or "seqlen" in text for text in said)
    expected = nets.runtime(model, inputs)["y"]
    replay = nets.replay_of(model)
    assert replay.unread == ["valid"]
    found = replay.run(inputs)["y"]
    error = (found - expected).abs().amax((1, 2, 3)) / expected.abs().max()
    assert error[0] > WRONG  # two keys of five are valid
    assert error[1] < 1e-5  # all are
    everything = torch.nn.functional.scaled_dot_product_attention(
        inputs["q"], inputs["k"], inputs["v"], enable_gqa=True
    )
    torch.testing.assert_close(found, everything, rtol=1e-5, atol=1e-5)


def test_the_parser_takes_one_function_for_two_of_one_name() -> None:
    """Two domains have a function of one name each: the network computes one of them for both."""

    def function(domain: str, op: str) -> FunctionProto:
        return helper.make_function(
            domain, "Act", ["x"], ["y"], [node(op, ["x"], ["y"])], [helper.make_opsetid("", 24)]
        )

    inputs = {"x": torch.linspace(-2, 2, 9)}
    calls = [node("Act", ["x"], ["a"], domain="one"), node("Act", ["x"], ["b"], domain="two")]
    both = [function("one", "Exp"), function("two", "Neg")]
    model = nets.model_of(calls, inputs, {"a": F32, "b": F32}, functions=both)
    expected, found = nets.runtime(model, inputs), nets.replay_of(model).run(inputs)
    assert torch.equal(found["a"], found["b"])
    errors = {name: plans.parts_of_largest(found[name], expected[name]) for name in "ab"}
    assert min(errors.values()) < 1e-6
    assert max(errors.values()) > WRONG
    apart = [
        helper.make_function(f.domain, f"Act{i}", ["x"], ["y"], list(f.node), list(f.opset_import))
        for i, f in enumerate(both)
    ]
    calls = [node("Act0", ["x"], ["a"], domain="one"), node("Act1", ["x"], ["b"], domain="two")]
    nets.agree(nets.model_of(calls, inputs, {"a": F32, "b": F32}, functions=apart), inputs)


@pytest.fixture(scope="module")
def decode(tmp_path_factory: pytest.TempPathFactory) -> plans.PlanCase:
    nets.rtx()
    return plans.write_plans(tmp_path_factory.mktemp("plans"), "tensorrt-rtx", 1, smaller={"layers": 1})[
        "decode.0"
    ]


def body_of(model: onnx.ModelProto, name: str) -> FunctionProto:
    (found,) = [f for f in model.functions if f.name == name]
    return found


def seen(
    model: onnx.ModelProto, wide: onnx.ModelProto, feeds: dict[str, torch.Tensor]
) -> tuple[float, float]:
    """The logits' error in wide precision, and what a stage is allowed."""
    from mm2c.verify.network_compare import allowed

    expected = nets.runtime(wide, plans.widened(feeds))["logits"]
    found = nets.replay_of(model).run(feeds, "wide")["logits"]
    return plans.parts_of_largest(found, expected), allowed("wide", 1)


def without_mask(model: onnx.ModelProto) -> onnx.ModelProto:
    """The plan with nonpad_kv_seqlen in the place of the explicit mask, which says the same of one token a row."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    body = body_of(changed, "M2Attention")
    (attention,) = [n for n in body.node if n.op_type == "Attention"]
    del attention.input[3:]
    attention.input.extend(["", "", "", "valid_i64"])
    at = list(body.node).index(attention)
    count = node("Add", ["past_len", "new_len"], ["valid_i32"], name="count_valid")
    cast = node("Cast", ["valid_i32"], ["valid_i64"], name="widen_valid", to=onnx.TensorProto.INT64)
    nodes = [*body.node[:at], count, cast, *body.node[at:]]
    del body.node[:]
    body.node.extend(nodes)
    return changed


def test_a_plan_without_its_mask_does_not_pass(decode: plans.PlanCase) -> None:
    feeds = plans.step_of(decode, 2, 1, 9)
    error, allowed = seen(decode.model, decode.wide, feeds)
    assert error < allowed
    masked = nets.runtime(decode.wide, plans.widened(feeds))["logits"]
    changed = nets.runtime(without_mask(decode.wide), plans.widened(feeds))["logits"]
    assert plans.parts_of_largest(changed, masked) < 1e-5  # ONNX Runtime sees no difference
    error, allowed = seen(without_mask(decode.model), without_mask(decode.wide), feeds)
    assert error > 10 * allowed


def with_second_linear(model: onnx.ModelProto) -> onnx.ModelProto:
    """The plan with a linear of its own for o_proj, under the same name in another domain: it turns the sign."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    body = FunctionProto()
    body.CopyFrom(body_of(changed, "M2Fp8Linear"))
    body.domain, result = "other", body.output[0]
    for made in body.node:
        made.output[:] = ["turned" if name == result else name for name in made.output]
    body.node.append(node("Neg", ["turned"], [result], name="turn"))
    (call,) = [n for n in changed.graph.node if n.op_type == "M2Fp8Linear" and "o_proj" in n.name]
    call.domain = "other"
    changed.functions.append(body)
    changed.opset_import.append(helper.make_opsetid("other", 1))
    return changed


def test_a_plan_with_two_functions_of_one_name_does_not_pass(decode: plans.PlanCase) -> None:
    feeds = plans.step_of(decode, 2, 1, 9)
    error, allowed = seen(with_second_linear(decode.model), with_second_linear(decode.wide), feeds)
    assert error > 10 * allowed


def test_a_wrong_axis_and_a_wrong_order_do_not_pass(decode: plans.PlanCase) -> None:
    """What a mistake in a lowering looks like: the network is not the graph that it is compared with."""
    feeds = plans.step_of(decode, 2, 1, 9)
    for name, attribute in (("M2AddRmsNorm", "epsilon"), ("M2QkSumSquares", None)):
        changed = onnx.ModelProto()
        changed.CopyFrom(decode.model)
        body = body_of(changed, name)
        if attribute:
            (norm,) = [n for n in body.node if n.op_type == "RMSNormalization"]
            norm.input[0] = body.input[0]  # without the residual
        else:
            (joined,) = [n for n in body.node if n.op_type == "Concat"]
            joined.input[:] = list(reversed(joined.input))  # k's sum for q
        error, allowed = seen(changed, decode.wide, feeds)
        assert error > 10 * allowed, name


def test_a_replay_outlives_the_network(decode: plans.PlanCase) -> None:
    """Parser and builder are gone when it runs."""
    import gc

    feeds = plans.step_of(decode, 1, 1, 3)
    replay = nets.replay_of(decode.model)
    first = replay.run(feeds)
    gc.collect()
    assert all(torch.equal(first[name], x) for name, x in replay.run(feeds).items())
