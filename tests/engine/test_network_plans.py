"""Whole plan graphs: the replay of TensorRT's network against ONNX Runtime on the same graph in f32."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import network_plans as plans
import networks as nets
import pytest
import torch

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = {"layers": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(engine, tp, KV type) -> its plans."""

    @cache
    def make(
        engine: str, tp: int = 1, kv: str = "bf16", all_logits: bool = False
    ) -> dict[str, plans.PlanCase]:
        nets.rtx()
        folder = tmp_path_factory.mktemp("plans")
        return plans.write_plans(folder, engine, tp, smaller=SMALL, kv_dtype=kv, all_logits=all_logits)

    return make


def alone(call: Any, tensor: torch.Tensor) -> torch.Tensor:
    """What DistCollective's body says to ONNX Runtime."""
    return tensor


def check(
    case: plans.PlanCase, feeds: dict[str, torch.Tensor], wide: float = 2e-5, declared: float = 0.15
) -> None:
    expected = nets.runtime(case.wide, plans.widened(feeds))
    replay = nets.replay_of(case.model, feeds)  # every size is compared with TensorRT's own
    assert replay.inputs == [t.name for t in case.spec.tensors if t.mode == "input"]
    assert replay.outputs == [t.name for t in case.spec.tensors if t.mode == "output"]
    for precision, allowed in (("wide", wide), ("declared", declared)):
        found = replay.run(feeds, precision, alone)
        for name, want in expected.items():
            if precision == "wide" and want.dtype == torch.float8_e4m3fn:  # next to the middle of two e4m3
                assert float((found[name].float() != want.float()).float().mean()) < 1e-3, name
            else:
                assert plans.parts_of_largest(found[name], want) < allowed, (precision, name)
    kinds = {t.name: t.dtype for t in case.spec.tensors}
    assert all(found[name].dtype == plans.TYPES[kinds[name]] for name in expected)


@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize(
    ("plan", "batch", "seq", "past"), [("decode.0", 3, 1, 7), ("prefill.0", 1, 12, 5), ("prefill.0", 1, 1, 0)]
)
def test_rows(made: Any, tp: int, plan: str, batch: int, seq: int, past: int) -> None:
    case = made("tensorrt-rtx", tp)[plan]
    check(case, plans.step_of(case, batch, seq, past))


@pytest.mark.parametrize(("tp", "kv"), [(1, "bf16"), (4, "bf16"), (1, "fp8")])
@pytest.mark.parametrize(("batch", "seq", "past"), [(3, 1, 70), (1, 9, 60)])
def test_pages(made: Any, tp: int, kv: str, batch: int, seq: int, past: int) -> None:
    """The bodies of the plugins, which the parser takes where no creator is registered."""
    case = made("tensorrt", tp, kv)["step.0"]
    check(case, plans.step_of(case, batch, seq, past))


def test_pages_of_rows_that_are_padded(made: Any) -> None:
    case = made("tensorrt", 1)["step.0"]
    feeds = plans.step_of(case, 2, 5, 62, new=3)
    expected = nets.runtime(case.wide, plans.widened(feeds))
    found = nets.replay_of(case.model).run(feeds, "wide")
    for name, want in expected.items():
        assert plans.parts_of_largest(found[name], want) < 2e-5, name


@pytest.mark.parametrize("engine", ["tensorrt-rtx", "tensorrt"])
def test_weights_of_bf16_and_plans_of_one_layer(engine: str, tiny_m2: Path, tmp_path: Path) -> None:
    import json

    nets.rtx()
    config = json.loads((tiny_m2 / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = plans.write_plans(tmp_path, engine, 4, checkpoint=tmp_path, smaller=SMALL, layers_per_plan=1)
    assert len(made) == (2 if engine == "tensorrt" else 4)
    for name, case in made.items():
        check(case, plans.step_of(case, *((1, 4, 6) if "prefill" in name else (2, 1, 6))))


def test_a_vocabulary_that_does_not_divide(tmp_path: Path) -> None:
    """The last rank's logits are padded with what is never chosen."""
    nets.rtx()
    made = plans.write_plans(tmp_path, "tensorrt-rtx", 4, smaller={"layers": 1, "vocab": 739})
    case = made["decode.1"]
    feeds = plans.step_of(case, 2, 1, 3)
    check(case, feeds)
    logits = nets.replay_of(case.model).run(feeds, "declared", alone)["logits"]
    assert logits[:, -1].isneginf().all()


def test_four_ranks_that_share_a_plan_in_lockstep(made: Any) -> None:
    """Ranks with weights of their own: the outputs that all ranks hold are the same ones, and those of one rank whose
    collectives are answered from the others' records."""
    from mm2c.verify.network import run_ranks

    case = made("tensorrt-rtx", 4)["decode.0"]
    shared = ("input_ids", "past_len", "new_len", "rope", "norm", "mlp.gate", "correction")
    feeds = [plans.step_of(case, 2, 1, 3, seed=rank) for rank in range(4)]
    for feed in feeds[1:]:
        feed |= {name: x for name, x in feeds[0].items() if any(part in name for part in shared)}
    replay = nets.replay_of(case.model)
    found = run_ranks([replay] * 4, feeds, "wide")
    assert len({float(one["k_cache_out.1"].sum()) for one in found}) == 4
    record: list[torch.Tensor] = []
    from mm2c.verify.network.ranks import exchange

    steps = [replay.steps(feed, "wide") for feed in feeds]
    calls = [next(one) for one in steps]
    while True:
        answers = exchange(calls)
        record.append(answers[2])
        try:
            calls = [one.send(answer) for one, answer in zip(steps, answers, strict=True)]
        except StopIteration:
            break
    replies = iter(record)
    again = replay.run(feeds[2], "wide", lambda call, tensor: next(replies))
    assert all(torch.equal(again[name], found[2][name]) for name in again)


def test_logits_that_are_gathered_have_the_whole_vocabulary(made: Any) -> None:
    """all_gather works along the first axis; the graph puts the ranks' parts side by side."""
    from mm2c.verify.network import run_ranks

    case = made("tensorrt-rtx", 4, all_logits=True)["prefill.0"]
    feeds = [plans.step_of(case, 1, 3, 0)] * 4  # equal ranks: equal parts
    logits = run_ranks([nets.replay_of(case.model, feeds[0])] * 4, feeds, "wide")[0]["logits"]
    assert logits.shape == (1, 3, case.config.vocab)
    part = case.config.vocab // 4
    assert all(torch.equal(logits[..., :part], logits[..., r * part : (r + 1) * part]) for r in range(4))


FULL_WIDTH = """
import sys, time, json, resource
from pathlib import Path
sys.path.insert(0, {fixtures!r})
import network_plans as plans, networks as nets, torch
folder = Path({folder!r})
case = plans.write_plans(folder, "tensorrt-rtx", 4, checkpoint=folder, context=1024)[{plan!r}]
feeds = plans.step_of(case, *{step!r})
replay = nets.replay_of(case.model, feeds)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.time()
found = {{p: replay.run(feeds, p, lambda call, x: x) for p in ("wide", "declared")}}
seconds, rss = time.time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
expected = nets.runtime(case.wide, plans.widened(feeds))
error = {{p: max(plans.parts_of_largest(found[p][n], x) for n, x in expected.items()) for p in found}}
print(json.dumps({{"seconds": seconds, "gib": rss / 2**20, "grown": (rss - before) / 2**20, "error": error}}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("plan", "step"), [("decode.0", (4, 1, 7)), ("prefill.0", (1, 32, 3))])
def test_a_layer_of_the_released_widths(tmp_path: Path, plan: str, step: tuple[int, int, int]) -> None:
    """Hidden 3072, 48 heads, 16 experts of 1536 at tp 4: in seconds and less than 2 GiB."""
    import json

    from m2_layout import released_config

    nets.rtx()
    config = released_config(
        layers=1, hidden=3072, heads=48, kv_heads=8, head_dim=128, rotary_dim=64, intermediate=1536,
        experts=16, top_k=8, vocab=4096, context=204800, rope_theta=5_000_000,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = FULL_WIDTH.format(fixtures=str(FIXTURES), folder=str(tmp_path), plan=plan, step=step)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    print(seen)
    assert seen["error"]["wide"] < 1e-5
    assert seen["error"]["declared"] < 0.05
    assert seen["gib"] < 3.0
    assert seen["seconds"] < 60
