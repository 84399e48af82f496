"""How far a build is, and how it is told to stop."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from mm2c.engine.tensorrt.monitor import Position, Stop, make_monitor

TRT = SimpleNamespace(IProgressMonitor=type("IProgressMonitor", (), {}))


def test_phases_within_phases() -> None:
    position = Position()
    assert position.start("build", 4) == 0
    assert position.step("build", 0) == 0.25
    assert position.start("compile", 2) == 0.25
    assert position.step("compile", 0) == 0.375
    assert position.step("compile", 1) == 0.5
    assert position.finish("compile") == 0.5
    assert position.step("build", 1) == 0.5
    assert position.finish("build") == 1.0


@given(
    st.lists(
        st.tuples(st.sampled_from(["start", "step", "finish"]), st.sampled_from("abc"), st.integers(0, 9)),
        max_size=40,
    )
)
def test_the_share_never_falls_and_stays_a_share(calls: list[tuple[str, str, int]]) -> None:
    position, last = Position(), 0.0
    for call, name, number in calls:
        if call == "start":
            share = position.start(name, number)
        else:
            share = position.step(name, number) if call == "step" else position.finish(name)
        assert last <= share <= 1
        last = share


def test_the_build_goes_on_until_it_is_told_to_stop() -> None:
    told: list[tuple[float, str]] = []
    stop = Stop()
    monitor = make_monitor(TRT, lambda share, phase: told.append((share, phase)), stop)
    monitor.phase_start("build", None, 2)
    assert monitor.step_complete("build", 0) is True
    stop.asked = True
    assert monitor.step_complete("build", 1) is False
    monitor.phase_finish("build")
    assert told == [(0.0, "build"), (0.5, "build"), (1.0, "build"), (1.0, "build")]
