"""The device's sampler against the host's, the kernel being played by the host's exact draw."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from cuda_reference import SamplingOps
from hypothesis import given
from hypothesis import strategies as st

from mm2c_runtime.errors import RequestError
from mm2c_runtime.executors.cuda.sampling import DeviceSampler
from mm2c_runtime.sampling.bitmask import pack
from mm2c_runtime.sampling.sampler import NON_FINITE, Sampler
from mm2c_runtime.step import RowStep, SamplingParams

VOCAB, ROWS = 97, 6
CPU = torch.device("cpu")


class Kernel(SamplingOps):
    """Writes down how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []

    def run(self, node: Any, inputs: Any) -> list[torch.Tensor]:
        self.calls.append((len(inputs[0]), node.attributes["greedy"], node.attributes["use_mask"]))
        assert [x.dtype for x in inputs] == [
            torch.float32, torch.int32, torch.float32, torch.int32, torch.float32, torch.float32, torch.int64,
        ]  # fmt: skip
        begin = inputs[-1].data_ptr()  # the first column
        assert all((x.data_ptr() - begin) % 16 == 0 for x in inputs[2:])
        return super().run(node, inputs)


def f32(values: st.SearchStrategy[float]) -> st.SearchStrategy[float]:
    """The kernel's parameters are f32; these are the same in f64."""
    return values.map(lambda value: float(np.float32(value)))


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.75]),
    top_k=st.sampled_from([0, 1, 5, 64, 65]),
    top_p=f32(st.floats(0.05, 1.0)),
    min_p=f32(st.sampled_from([0.0, 0.1])),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.5]),
    seed=st.integers(0, 2**64 - 1),
)
rows = st.fixed_dictionaries(
    {
        "params": params,
        "sample": st.booleans(),
        "logprobs": st.sampled_from([None, None, 2]),
        "mask": st.sampled_from([None, "some", "late", "nothing", "failing"]),
        "broken": st.sampled_from([False, False, False, True]),
    }
)


def mask_of(kind: str | None, row: int) -> Any:
    some = np.zeros(VOCAB, np.bool_)
    some[row::3] = kind != "nothing"
    if kind in ("late", "failing"):
        future: Future[Any] = Future()
        if kind == "late":
            future.set_result(pack(some))
        else:
            future.set_exception(RequestError("INVALID_ARGUMENT", "no grammar"))
        return future
    return None if kind is None else pack(some)


@given(some=st.lists(rows, min_size=1, max_size=ROWS), seed=st.integers(0, 1000))
def test_both_draw_the_same(some: list[dict[str, Any]], seed: int) -> None:
    host, state = Sampler(VOCAB), Sampler(VOCAB)
    device = DeviceSampler(state, Kernel(), ROWS, CPU)
    logits = np.random.default_rng(seed).standard_normal((len(some), VOCAB)).astype(np.float32) * 3
    steps = []
    for row, its in enumerate(some):
        if its["broken"]:
            logits[row, 7] = (np.nan, np.inf, -np.inf)[row % 3]
        step = RowStep(row, [1], 0, 1, its["sample"], token_index=row, sampling=its["params"], history=[3, 5])
        step.logprobs, step.bitmask = its["logprobs"], mask_of(its["mask"], row)
        for sampler in (host, state):
            sampler.observe(step)
        steps.append(step)
    assert device.sample(torch.from_numpy(logits), steps) == host.sample(logits, steps)


def sampled(steps: list[RowStep], kernel: Kernel) -> Any:
    sampler = Sampler(VOCAB)
    for step in steps:
        sampler.observe(step)
    logits = torch.zeros(len(steps), VOCAB)
    return DeviceSampler(sampler, kernel, ROWS, CPU).sample(logits, steps)


def test_the_cheapest_kernel_that_will_do() -> None:
    greedy, hot = SamplingParams(temperature=0.0), SamplingParams(top_k=3)
    everything = pack(np.ones(VOCAB, np.bool_))
    kernel = Kernel()
    sampled(
        [RowStep(0, [1], 0, 1, True, sampling=greedy), RowStep(1, [1], 0, 1, False, sampling=hot)], kernel
    )
    sampled([RowStep(0, [1], 0, 1, True, sampling=hot)], kernel)
    sampled([RowStep(0, [1], 0, 1, True, sampling=greedy, bitmask=everything)], kernel)
    sampled([RowStep(0, [1], 0, 1, True, sampling=SamplingParams(), bitmask=everything)], kernel)
    assert kernel.calls == [(2, 1, 0), (1, 0, 0), (1, 1, 1), (1, 1, 0)]


def test_a_row_without_parameters() -> None:
    with pytest.raises(ValueError, match="never had sampling parameters"):
        sampled([RowStep(0, [1], 0, 1, True)], Kernel())
    assert sampled([RowStep(0, [1], 0, 1, False)], Kernel())[0].error is None


def test_rows_that_are_not_sampled_are_looked_at_all_the_same() -> None:
    sampler = Sampler(VOCAB)
    logits = torch.full((1, VOCAB), float("nan"))
    (result,) = DeviceSampler(sampler, Kernel(), ROWS, CPU).sample(logits, [RowStep(0, [1], 0, 1, False)])
    assert (result.token, result.error) == (None, NON_FINITE)


@pytest.mark.parametrize(("token", "status"), [(VOCAB, 0), (-1, 0), (5, 3)])
def test_what_no_sampler_says_is_an_error(token: int, status: int) -> None:
    class Broken(Kernel):
        def run(self, node: Any, inputs: Any) -> list[torch.Tensor]:
            return [torch.tensor([value], dtype=torch.int32) for value in (token, status)]

    (result,) = sampled([RowStep(0, [1], 0, 1, True, sampling=SamplingParams(temperature=0.0))], Broken())
    assert result.token is None
    assert f"token {token} with status {status}" in (result.error or "")
