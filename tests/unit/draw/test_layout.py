"""Layered layouts of any graph: nothing overlaps, every edge points down, the same input gives the same places."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm2c.draw.layout import GAP_X, MARGIN, lay_out

graphs = st.integers(1, 12).flatmap(
    lambda count: st.tuples(
        st.lists(st.tuples(st.floats(10, 300), st.floats(10, 90)), min_size=count, max_size=count),
        st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=20),
    )
)


@given(graphs)
def test_places_are_apart_and_edges_point_down(
    graph: tuple[list[tuple[float, float]], list[tuple[int, int]]],
) -> None:
    sizes = {f"n{i}": size for i, size in enumerate(graph[0])}
    links = [(f"n{min(a, b)}", f"n{max(a, b)}") for a, b in graph[1] if a != b]
    layout = lay_out(sizes, links)
    places = list(layout.places.values())
    for i, a in enumerate(places):
        assert a.x >= MARGIN - 0.01
        assert a.x + a.width <= layout.width - MARGIN + 0.01
        assert a.y + a.height <= layout.height - MARGIN + 0.01
        for b in places[:i]:
            beside = a.x >= b.x + b.width + GAP_X - 0.01 or b.x >= a.x + a.width + GAP_X - 0.01
            assert beside or a.y >= b.y + b.height or b.y >= a.y + a.height
    for source, target in links:
        points = layout.bends[source, target]
        heights = [layout.places[source].y + layout.places[source].height]
        heights += [y for _, y in points] + [layout.places[target].y]
        assert heights[0] < heights[-1]
        assert [y for _, y in points] == sorted(y for _, y in points)
    assert lay_out(sizes, links) == layout


def test_long_edges_bend_around_what_stands_between() -> None:
    sizes = dict.fromkeys("abc", (100.0, 30.0))
    layout = lay_out(sizes, [("a", "b"), ("b", "c"), ("a", "c")])
    ((x, _), _) = layout.bends["a", "c"]
    between = layout.places["b"]
    assert not between.x <= x <= between.x + between.width


def test_what_nothing_precedes_stands_right_above_its_reader() -> None:
    sizes = dict.fromkeys(("a", "late", "b", "c"), (100.0, 30.0))
    layout = lay_out(sizes, [("a", "b"), ("b", "c"), ("late", "c")])
    assert layout.places["late"].y == layout.places["b"].y


def test_an_edge_that_points_back_is_refused() -> None:
    with pytest.raises(ValueError, match="from b to a points back"):
        lay_out({"a": (1, 1), "b": (1, 1)}, [("b", "a")])


def test_nothing() -> None:
    assert lay_out({}, []).places == {}
