"""One plan's step on ONNX Runtime and on TensorRT, both by Polygraphy's runners, compared by its comparator.

Imported only where Polygraphy is, and after it was told which TensorRT it speaks to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.backend.trt import EngineFromBytes, TrtRunner
from polygraphy.comparator import Comparator, RunResults, SnrCompareFunc
from polygraphy.logger import G_LOGGER

from mm2c.bundle.polygraphy_files import LEAST_SNR
from mm2c.bundle.polygraphy_inputs import (
    know_fp8,
    load_plugins,
    onnxrt_feed,
    onnxrt_graph,
    tensorrt_feed,
    tensorrt_graph,
)
from mm2c.errors import UserError
from mm2c_runtime.plan_step import Step


def compare_step(step: Step, trt: Any, own_build: bool) -> dict[str, float]:
    """The signal-to-noise ratio of each output in dB. ``trt``: the module; ``own_build``: run the graph without
    collectives, built here, in place of the bundle's plan.

    Raises UserError where TensorRT cannot build or run it.
    """
    with G_LOGGER.verbosity(G_LOGGER.ERROR):
        expected = reference_results(step)
        know_fp8()
        load_plugins(step)
        runner = TrtRunner(
            EngineFromBytes(_built(step, trt) if own_build else _plan(step)),
            name="TensorRT",
            optimization_profile=None if own_build else step.plan.profiles.index(step.profile),
            allocation_strategy="profile",
        )
        return ratios(expected, results_of(runner, tensorrt_feed(step), step))


def reference_results(step: Step) -> RunResults:
    """The wide graph on ONNX Runtime, on the CPU."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # as in the script of bundles
    session = SessionFromOnnx(onnxrt_graph(step).SerializeToString())
    return results_of(OnnxrtRunner(session, name="ONNX Runtime"), onnxrt_feed(step), step)


def results_of(runner: Any, feed: Mapping[str, Any], step: Step) -> RunResults:
    from polygraphy.exception import PolygraphyException

    try:
        return Comparator.run([runner], data_loader=[dict(feed)])
    except PolygraphyException as error:
        raise UserError(
            f"{runner.name} cannot run {step.plan.name} with profile {step.profile.name}: {error}",
            where=str(step.bundle),
            remedy="the lines above say why; `mm2c inspect BUNDLE --engine` shows what the plan is for",
        ) from error


def ratios(expected: RunResults, found: RunResults) -> dict[str, float]:
    """By Polygraphy's comparison. An output that only one side has is NaN."""
    wanted, got = (results.lst[0][1][0] for results in (expected, found))
    compared = Comparator.compare_accuracy(
        [expected, found], compare_func=SnrCompareFunc(snr_threshold=LEAST_SNR)
    )
    (iterations,) = compared[0].values()
    known = {str(name): float(result.snr) for name, result in iterations[0].items() if hasattr(result, "snr")}
    return {name: known.get(name, float("nan")) for name in dict.fromkeys([*wanted, *got])}


def _plan(step: Step) -> bytes:
    if step.plan.plan is None:
        raise ValueError(f"{step.plan.name} is still to be built")
    return (step.bundle / step.plan.plan).read_bytes()


def _built(step: Step, trt: Any) -> bytes:
    """The graph of the plan without collectives, built for this GPU and this step alone."""
    from mm2c.engine.tensorrt.parse import NetworkRefused, parse_network
    from mm2c.engine.tensorrt.settings import configure

    engine = step.manifest.engine
    try:
        parsed = parse_network(trt, tensorrt_graph(step).SerializeToString())
    except NetworkRefused as error:
        raise _refused(step, str(error)) from error
    config = parsed.builder.create_builder_config()
    configure(trt, config, engine, ())
    profile = parsed.builder.create_optimization_profile()
    for name, shape in step.varying.items():
        profile.set_shape(name, shape, shape, shape)
    config.add_optimization_profile(profile)
    built = parsed.builder.build_serialized_network(parsed.network, config)
    if built is None:
        raise _refused(step, "the builder gives no plan")
    return bytes(built)


def _refused(step: Step, why: str) -> UserError:
    return UserError(
        f"TensorRT does not build {step.plan.name} without collectives: {why}",
        where=str(step.bundle / step.plan.graph),
        remedy="`mm2c verify` without a GPU compares the graphs layer by layer",
    )
