"""The workspace of a profile's largest shapes serves every smaller one, whatever the tactic."""

from __future__ import annotations

import pytest
from plugin_cases import CASES, DEVICES, Recorder, at, attention_inputs, attention_outputs

from mm2c_plugins.host import Library

TOKENS = [1, 2, 4, 5, 8, 9, 16, 17, 31, 64, 65, 100, 129, 256, 257, 600, 1025, 5000]
START = 1 << 40  # of the workspace; beyond every tensor of the cases


@pytest.mark.parametrize("sm", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_no_smaller_shape_needs_more(library: Library, recorder: Recorder, name: str, sm: int) -> None:
    recorder.device(sm)
    case = CASES[name]
    plugin = library.create(name, case.attributes)
    sizes = [plugin.workspace(case.inputs(tokens), case.outputs(tokens)) for tokens in TOKENS]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("sm", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_slices_lie_inside(library: Library, recorder: Recorder, name: str, sm: int) -> None:
    recorder.device(sm)
    case = CASES[name]
    plugin = library.create(name, case.attributes)
    op = plugin.attach()
    for tokens in TOKENS:
        inputs, outputs = at(case.inputs(tokens)), at(case.outputs(tokens), 1 << 24)
        for output, source in plugin.aliases().items():
            outputs[output] = outputs[output]._replace(pointer=inputs[source].pointer)
        size = plugin.workspace(inputs, outputs)
        for tactic in [0, *plugin.tactics()]:
            op.set_tactic(tactic)
            recorder.launches.clear()
            op.enqueue(inputs, outputs, START)
            assert recorder.launches
            for launch in recorder.launches:
                slices = [
                    v for v, kind in zip(launch.args, launch.types, strict=True) if kind == "p" and v >= START
                ]
                assert all(START <= address < START + max(size, 1) for address in slices)
                assert all(address % 16 == 0 for address in slices)


def test_attention_of_any_rows_within_the_profile(library: Library, recorder: Recorder) -> None:
    """A row is split into more parts the fewer rows there are."""
    plugin = library.create("M2PagedAttention", CASES["M2PagedAttention"].attributes)
    op = plugin.attach()
    for most in (1, 3, 40, 200):
        size = plugin.workspace(attention_inputs(most, 1), attention_outputs(most, 1))
        for rows in range(1, most + 1):
            inputs, outputs = at(attention_inputs(rows, 1)), at(attention_outputs(rows, 1), 1 << 24)
            for output, source in plugin.aliases().items():
                outputs[output] = outputs[output]._replace(pointer=inputs[source].pointer)
            recorder.launches.clear()
            op.enqueue(inputs, outputs, START)
            values = recorder.values(1)
            splits, heads = int(values["splits"]), int(values["HQ"])
            assert recorder.launches[1].grid[1] == splits
            assert splits == 1 or int(values["lse"]) + 4 * rows * heads * splits <= START + size
