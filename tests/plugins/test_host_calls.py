"""Prepared launches, launchers that fail, and what a call costs."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import pytest
from plugin_cases import CASES, Recorder, at

from mm2c_plugins.host import Launch, Library, PluginError

NAME = "M2AddRmsNorm"
CASE = CASES[NAME]


def test_a_prepared_launch_can_be_repeated_and_moved(recorder: Recorder) -> None:
    inputs, outputs = at(CASE.inputs(3)), at(CASE.outputs(3), 1 << 24)
    call = recorder.op(NAME).prepare(inputs, outputs)
    call.launch(5)
    call.launch(6)
    first, second = recorder.launches
    assert first == second._replace(stream=5)
    call.point([address + 65536 for address in [t.pointer for t in [*inputs, *outputs]]], 4096)
    call.launch()
    moved = recorder.values(2)
    assert moved["x"] == inputs[0].pointer + 65536
    assert moved["total"] == outputs[1].pointer + 65536


def test_moving_takes_as_many_addresses_as_there_are_tensors(recorder: Recorder) -> None:
    call = recorder.op(NAME).prepare(at(CASE.inputs(3)), at(CASE.outputs(3), 1 << 24))
    with pytest.raises(PluginError, match="5 tensors, but 4 addresses"):
        call.point([4096] * 4)


def test_calls_of_one_op_keep_their_own_shapes(recorder: Recorder) -> None:
    op = recorder.op(NAME)
    calls = {n: op.prepare(at(CASE.inputs(n)), at(CASE.outputs(n), 1 << 24)) for n in (1, 4, 300)}
    for tokens in (4, 1, 300, 4, 4, 1):
        calls[tokens].launch()
        assert recorder.launches[-1].grid[0] == tokens


def test_a_call_outlives_the_names_of_its_op_and_plugin(recorder: Recorder) -> None:
    call = recorder.op(NAME).prepare(at(CASE.inputs(2)), at(CASE.outputs(2), 1 << 24))
    gc.collect()
    call.launch()
    assert recorder.kernels == ["add_rms_norm"]


def test_an_op_recovers_from_a_refused_shape(recorder: Recorder) -> None:
    op = recorder.op(NAME)
    good = op.prepare(at(CASE.inputs(2)), at(CASE.outputs(2), 1 << 24))
    good.launch()
    with pytest.raises(PluginError, match="residual"):
        op.enqueue(at([CASE.inputs(2)[0], *CASE.inputs(3)[1:]]), at(CASE.outputs(2), 1 << 24))
    good.launch()
    assert len(recorder.launches) == 2


def test_a_launcher_that_answers_no(recorder: Recorder) -> None:
    recorder.answer = 3
    with pytest.raises(PluginError, match=f"^{NAME}: .*add_rms_norm"):
        recorder.run(NAME, 2)


def test_a_launcher_that_raises(library: Library, recorder: Recorder) -> None:
    def broken(launch: Launch) -> None:
        raise ZeroDivisionError(launch.kernel)

    library.set_launcher(broken)
    with pytest.raises(
        PluginError, match=rf"^{NAME}: .*ZeroDivisionError in the launcher: add_rms_norm"
    ) as raised:
        recorder.run(NAME, 2)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_an_interrupt_in_the_launcher_stays_one(library: Library, recorder: Recorder) -> None:
    def interrupted(launch: Launch) -> None:
        raise KeyboardInterrupt

    library.set_launcher(interrupted)
    with pytest.raises(KeyboardInterrupt):
        recorder.run(NAME, 2)


def test_launchers_of_two_threads_do_not_mix_their_errors(library: Library, recorder: Recorder) -> None:
    def broken(launch: Launch) -> None:
        raise ValueError(threading.current_thread().name)

    def run(found: list[str]) -> None:
        op = recorder.op(NAME)
        for _ in range(50):
            try:
                op.enqueue(at(CASE.inputs(2)), at(CASE.outputs(2), 1 << 24))
            except PluginError as error:
                found.append(str(error.__cause__))

    library.set_launcher(broken)
    found: dict[str, list[str]] = {"one": [], "two": []}
    threads = [threading.Thread(target=run, args=(texts,), name=name) for name, texts in found.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [name] * 50 for name in found}


def test_the_first_failed_launch_ends_the_enqueue(recorder: Recorder) -> None:
    recorder.answer = 1
    with pytest.raises(PluginError, match="M2MoeFp8: "):
        recorder.run("M2MoeFp8", 64)
    assert len(recorder.launches) == 1


def test_enqueue_keeps_the_plan_of_equal_shapes(recorder: Recorder) -> None:
    """The same shapes elsewhere, other shapes, and the first ones again."""
    op = recorder.op(NAME)
    for tokens, start in ((3, 1 << 20), (3, 1 << 22), (5, 1 << 20), (3, 1 << 20)):
        op.enqueue(at(CASE.inputs(tokens), start), at(CASE.outputs(tokens), 1 << 24), 0, start)
        assert recorder.launches[-1].grid[0] == tokens
        assert recorder.values(len(recorder.launches) - 1)["x"] == start
        assert recorder.launches[-1].stream == start


def test_a_call_costs_microseconds(recorder: Recorder) -> None:
    """What the host adds, measured on calls that are refused nothing and launch nothing."""
    inputs, outputs = at(CASE.inputs(0)), at(CASE.outputs(0), 1 << 24)
    op = recorder.op(NAME)
    call = op.prepare(inputs, outputs)
    addresses = [tensor.pointer for tensor in (*inputs, *outputs)]

    def best(run: Callable[[], object], repeat: int = 7, calls: int = 400) -> float:
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            for _ in range(calls):
                run()
            times.append((time.perf_counter() - start) / calls)
        return min(times)

    assert best(call.launch) < 15e-6
    assert best(lambda: (call.point(addresses, 1 << 28), call.launch(7))) < 15e-6
    assert best(lambda: op.enqueue(inputs, outputs, 1 << 28, 7)) < 30e-6
