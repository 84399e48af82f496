from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mm2c_runtime.stop import StopStrings, _Progress

small = st.text(alphabet="ab ", min_size=1, max_size=4)


def reference(text: str, stops: list[str]) -> str:
    """Character by character: the first stop string to be complete cuts where it began."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(
    st.text(alphabet="ab ", max_size=30),
    st.lists(small, max_size=3),
    st.lists(st.integers(0, 30), max_size=8),
)
def test_any_split_cuts_at_the_same_place(text: str, stops: list[str], cuts: list[int]) -> None:
    stopper = StopStrings(stops)
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    shown = ""
    for start, end in itertools.pairwise(places):
        shown += stopper.feed(text[start:end])
        assert reference(text, stops).startswith(shown)
    hit = stopper.hit
    shown += stopper.finish()
    assert shown == reference(text, stops)
    assert (hit is not None) == any(stop in text for stop in stops)


def test_the_most_that_a_request_may_ask_costs_little_a_token() -> None:
    """Stop strings that almost match, over and over: a character costs a comparison or two for each."""
    compared = [0]

    class Counted(str):
        def __getitem__(self, key: Any) -> str:
            compared[0] += 1
            return super().__getitem__(key)

    stopper = StopStrings([])
    stopper._stops = [_Progress(Counted("a" * (900 + n) + "b")) for n in range(64)]
    compared[0] = 0
    for _ in range(500):
        assert stopper.feed("aaaa") == "" or len(stopper._held) == 963
    assert compared[0] < 3 * 64 * 2000


def test_text_is_held_back_only_while_it_may_be_a_stop_string() -> None:
    stopper = StopStrings(["STOP"])
    assert stopper.feed("go S") == "go "
    assert stopper.feed("T") == ""
    assert stopper.feed("ART") == "START"
    assert stopper.feed("xxST") == "xx"
    assert stopper.feed("OP and more") == ""
    assert stopper.hit == "STOP"
    assert stopper.feed("even more") == stopper.finish() == ""
