"""The TensorRT engines' executors on whole bundles of the demo checkpoint, with a double of the library that runs their
plans in f32: rows and pages, one rank and several, beside the ONNX Runtime executor of the same checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from paged_driver import Driver, close, greedy, logits_of
from tensorrt_bundle import build_doubled
from tensorrt_double import ICudaEngine

from mm2c_runtime.bundle import Bundle
from mm2c_runtime.executors.load import load_executor
from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor
from mm2c_runtime.executors.tensorrt.plans import table_fault
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.manifest_tensorrt import Plan
from mm2c_runtime.step import RowStep, SamplingParams, StepBatch

pytestmark = pytest.mark.usefixtures("one_thread")
DOUBLE = "tensorrt_double:double"
CHUNK, STEPS = 48, 6
PROMPTS = [
    [5, 90, 17, 33, 260, 8, 41, 300, 12, 77],
    [44, 7, 500],
    [(31 * n) % 700 for n in range(70)],
    [(17 * n) % 700 for n in range(9)],
    [61],
]
SIZES = {"context": 256, "prefill_chunk": CHUNK, "layers_per_plan": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "rtx": {"engine": "tensorrt-rtx", "tp": 1, "max_rows": 20},
    "rtx-tp2": {"engine": "tensorrt-rtx", "tp": 2, "max_rows": 6},
    "tensorrt": {"engine": "tensorrt", "tp": 1, "max_rows": 6},
    "tensorrt-tp2-fp8": {"engine": "tensorrt", "tp": 2, "max_rows": 6, "kv_dtype": "fp8"},
}


@pytest.fixture(scope="module")
def bundles(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By layout, one after another, so that they share a trace."""
    folder = tmp_path_factory.mktemp("plans")
    return {name: build_doubled(tiny_m2, folder / name, **SIZES, **cut) for name, cut in LAYOUTS.items()}


@pytest.fixture(scope="module")
def oracle(cpu_bundle: Path) -> Iterator[OnnxRuntimeExecutor]:
    executor = OnnxRuntimeExecutor(cpu_bundle, read_manifest(cpu_bundle), threads=1)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def expected(oracle: OnnxRuntimeExecutor) -> list[list[int]]:
    return greedy(Driver(oracle), PROMPTS, STEPS)


@pytest.fixture(scope="module", params=list(LAYOUTS))
def executor(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Iterator[Any]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(
        Path(__file__).parents[1] / "fixtures"
    )  # where rank processes find the double
    try:
        folder = bundles[request.param]
        made = load_executor(
            folder, read_manifest(folder), lowering="fast", threads=1, kv_tokens=None, ops=DOUBLE
        )
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    made.fp8 = "fp8" in request.param  # type: ignore[attr-defined]
    yield made
    made.close()


def test_facts(executor: Any) -> None:
    kv, width = executor.kv, 1 if executor.fp8 else 2
    assert kv.bytes_per_token == 2 * 3 * 4 * 128 * width  # K and V, layers, heads of all ranks, head_dim
    assert kv.page in (0, 64)
    assert (kv.pages > 0) == (kv.page > 0)
    assert executor.kv_tokens == executor.limits.max_rows * 256


def test_logits_and_greedy_tokens_are_the_cpu_engines(
    executor: Any, oracle: OnnxRuntimeExecutor, expected: list[list[int]]
) -> None:
    """Prompts that fit a chunk and one that takes two; then all of them decode together."""
    for prompt in PROMPTS:
        tolerance = 0.2 if executor.fp8 else 0.01
        close(logits_of(Driver(executor), prompt), logits_of(Driver(oracle), prompt), tolerance)
    found = greedy(Driver(executor), PROMPTS, STEPS)
    if executor.fp8:  # keys and values are rounded to 3 bits: near ties may fall the other way
        assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 3
    else:
        assert found == expected


@pytest.mark.parametrize("chunk", [1, 17])
def test_prefill_in_chunks_is_one_prefill(executor: Any, chunk: int) -> None:
    prompt = PROMPTS[2][:40] if chunk > 1 else PROMPTS[0]
    tolerance = 0.05 if executor.fp8 else 0.005  # a chunk's own keys and values are not rounded to e4m3
    close(logits_of(Driver(executor), prompt, chunk), logits_of(Driver(executor), prompt), tolerance)


def test_rows_end_move_and_others_take_their_place(executor: Any, expected: list[list[int]]) -> None:
    """Every row goes on saying what it says alone."""
    if executor.fp8:
        pytest.skip("answers of rounded keys depend on how a prompt was cut")
    rng = np.random.default_rng(1)
    driver = Driver(executor)
    rows: list[tuple[int, list[int]]] = []  # by row: which prompt, and its tokens so far

    def end(row: int) -> None:
        driver.release(row)
        rows[row] = rows[-1]
        rows.pop()

    ended = 0
    for _ in range(24):
        action, which = rng.random(), int(rng.integers(len(PROMPTS)))
        if action < 0.45 and driver.pool.fits(len(PROMPTS[which]) + 20) and len(rows) < 5:
            _, result = driver.prefill(PROMPTS[which], len(PROMPTS[which]) + 20, int(rng.integers(9, 49)))
            assert result.token is not None
            rows.append((which, [result.token]))
        elif action < 0.6 and rows:
            end(int(rng.integers(len(rows))))
        elif rows:
            results = driver.decode([tokens[-1] for _, tokens in rows])
            for (_, tokens), result in zip(rows, results, strict=True):
                assert result.token is not None
                tokens.append(result.token)
        for row in reversed(range(len(rows))):
            which, tokens = rows[row]
            assert tokens == expected[which][: len(tokens)]
            if len(tokens) == STEPS + 1:
                ended += 1
                end(row)
    while rows:
        end(0)
    assert ended > 0


def test_seeded_draws_and_log_probabilities(executor: Any, oracle: OnnxRuntimeExecutor) -> None:
    """Candidates of several ranks, or all logits where they are asked for: the tokens of one sampler."""
    for seed, (top_k, logprobs) in enumerate([(20, None), (20, 2), (0, None)]):
        params = SamplingParams(temperature=0.9, top_k=top_k, top_p=0.9, seed=seed)
        found = []
        for one in (executor, oracle):
            driver = Driver(one)
            _, result = driver.prefill(PROMPTS[0], 40, params=params, logprobs=logprobs)
            driver.release(0)
            driver.executor.step(
                StepBatch(0, "prefill", [RowStep(1, [1], 0, 1, False, blocks=[0])], released=[0])
            )
            found.append(result)
        if not executor.fp8:
            assert found[0].token == found[1].token
        assert (found[0].logprobs is None) == (logprobs is None)


def test_more_than_sixteen_rows_run_all_experts(bundles: dict[str, Path], expected: list[list[int]]) -> None:
    folder = bundles["rtx"]
    executor = load_executor(
        folder, read_manifest(folder), lowering="fast", threads=1, kv_tokens=None, ops=DOUBLE
    )
    prompts = [PROMPTS[n % len(PROMPTS)] for n in range(18)]
    found = greedy(Driver(executor), prompts, 2)
    assert found == [expected[n % len(PROMPTS)][:3] for n in range(18)]
    executor.close()


@pytest.mark.parametrize("layout", ["rtx", "tensorrt"])
def test_a_loaded_bundle_answers(bundles: dict[str, Path], cpu_bundle: Path, layout: str) -> None:
    """Through the engine loop, as it is served: several requests at a time, as the CPU engine answers them."""
    found = []
    for folder, ops in ((bundles[layout], DOUBLE), (cpu_bundle, "")):
        with Bundle.load(folder, ops=ops, self_check="never", threads=1) as bundle:
            assert bundle.describe()["engine"] == read_manifest(folder).engine
            options: dict[str, Any] = {"max_tokens": 5, "temperature": 0.0, "stream": True}
            streams = [bundle.generate(prompt=text, **options) for text in ("What is 2 + 3?", "Hello!")]
            found.append(["".join(delta.text for delta in stream) for stream in streams])
    assert found[0] == found[1]


class Parsed:
    """The inputs and outputs of the network that TensorRT-RTX parses from a plan's graph, asked as an engine is: an
    engine needs a GPU. Profiles are those that the builder is given."""

    def __init__(self, trt: Any, network: Any, plan: Plan) -> None:
        self.trt, self.plan = trt, plan
        self.inputs = {t.name: t for t in (network.get_input(i) for i in range(network.num_inputs))}
        self.outputs = {t.name: t for t in (network.get_output(i) for i in range(network.num_outputs))}
        self.names = [*self.inputs, *self.outputs]
        self.num_io_tensors, self.num_optimization_profiles = len(self.names), len(plan.profiles)

    def get_tensor_name(self, index: int) -> str:
        return str(self.names[index])

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if name in self.inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return (self.inputs | self.outputs)[name].dtype

    def get_tensor_shape(self, name: str) -> Any:
        return (self.inputs | self.outputs)[name].shape

    def get_tensor_location(self, name: str) -> Any:
        return self.trt.TensorLocation.DEVICE

    def get_aliased_input_tensor(self, name: str) -> None:
        return None

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
        ranges = ICudaEngine.get_tensor_profile_shape(cast(Any, self), name, profile_index)
        return [self.trt.Dims(shape) for shape in ranges]

    @property
    def tensors(self) -> Any:
        return {tensor.name: tensor for tensor in self.plan.tensors}

    pages_range = (1, 4, 8)


@pytest.mark.parametrize("layout", ["rtx-tp2", "tensorrt"])
def test_the_library_sees_the_inputs_and_outputs_of_the_manifest(
    bundles: dict[str, Path], layout: str
) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from mm2c.engine.tensorrt.parse import parse_network

    program = read_manifest(bundles[layout]).tensorrt
    assert program is not None
    for plan in program.plans[:2]:
        parsed = parse_network(trt, (bundles[layout] / plan.graph).read_bytes())
        asked = Parsed(trt, parsed.network, plan)
        assert table_fault(trt, asked, plan) == ""
        other = plan.model_copy(update={"tensors": plan.tensors[:-1]})
        assert table_fault(trt, asked, other).endswith("which the manifest does not name")
