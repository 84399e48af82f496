"""The picture of a layer: everything that the graph has is in it, marked as what it is, as valid XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mm2c.bundle.rank_graph_file import RankGraphFile
from mm2c.config import Mapping
from mm2c.draw.files import write_layer_picture
from mm2c.draw.layer_graph import layer_graph
from mm2c.draw.layer_picture import LEGEND, layer_picture
from mm2c.errors import UserError

SVG = "{http://www.w3.org/2000/svg}"
Graphs = Callable[..., RankGraphFile]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def boxes(svg: str) -> Counter[str]:
    """Boxes by kind, the legend's left out."""
    found = Counter(
        group.get("class", "").removeprefix("box ")
        for group in ET.fromstring(svg).iter(f"{SVG}g")
        if group.get("class", "").startswith("box ")
    )
    return found - Counter(list(LEGEND))


def test_a_layer_of_one_of_two_ranks(rank_graph: Graphs) -> None:
    graph = rank_graph(Mapping(2, rank=1))
    svg = layer_picture(graph, ranks=2)
    written = texts(svg)
    assert written[0] == "Decoder layer (layers 0 to 2) on rank 1 of 2"
    assert written.count("all-reduce over 2 ranks") == 3
    assert {"self_attn.qk_sums", "self_attn.o_proj", "mlp.experts"} <= set(written)
    assert any(text.startswith("q_proj.weight e4m3 [512, 128] 64.0 KiB") for text in written)
    assert any(text.startswith("experts.down_proj e4m3 [8, 128, 256] 256.0 KiB") for text in written)
    assert "f32 [B, S, 512]" in written  # q of this rank's four heads
    assert {"k cache in", "v cache in", "k cache out", "v cache out"} <= set(written)
    assert any(text.startswith("reads past_len, new_len") for text in written)


def test_plugins_and_collectives_differ_in_class_and_in_shape(rank_graph: Graphs) -> None:
    svg = layer_picture(rank_graph(Mapping(2)))
    kinds = boxes(svg)
    # q, k, v and o projections, sums of squares, routing, experts
    assert (kinds["plugin"], kinds["collective"], kinds["dialect"]) == (7, 3, 1)
    assert kinds["cache"] == 4
    shapes: dict[str, set[int]] = {}
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        kind = group.get("class", "").removeprefix("box ")
        path = group.find(f"{SVG}path")
        if kind in ("plugin", "collective") and path is not None:
            shapes.setdefault(kind, set()).add(path.get("d", "").count("L"))
    assert shapes == {"plugin": {7}, "collective": {5}}  # octagons and hexagons
    assert all(text in texts(svg) for text in (*LEGEND.values(), "weight"))


def test_the_paged_layer_and_attention_dp(rank_graph: Graphs) -> None:
    svg = layer_picture(rank_graph(Mapping(2, 4, 4), paged=True), ranks=4)
    written = texts(svg)
    assert {"M2PagedAttention", "all-gather over 2 ranks", "reduce-scatter over 2 ranks"} <= set(written)
    assert written.count("all-reduce over 2 ranks") == 3
    assert "bf16 [2·P, 128]" in written or "f32 [2·P, 128]" in written
    assert any(text.startswith("reads past_len, new_len, block_table") for text in written)
    assert any("P tokens of an exchange" in text for text in written)


def test_one_rank_has_no_collective(rank_graph: Graphs) -> None:
    assert boxes(layer_picture(rank_graph(Mapping())))["collective"] == 0


def test_equal_graphs_give_equal_bytes(rank_graph: Graphs) -> None:
    graph = rank_graph(Mapping(2))
    assert layer_picture(graph) == layer_picture(graph)


def test_light_and_dark_and_nothing_from_outside(rank_graph: Graphs) -> None:
    svg = layer_picture(rank_graph(Mapping(2)))
    assert "prefers-color-scheme: dark" in svg
    assert svg.count("http") == 1  # the namespace
    assert 'class="paper"' in svg


def test_weights_are_counted_once_a_layer(rank_graph: Graphs) -> None:
    graph = rank_graph(Mapping(2))
    layer = layer_graph(graph)
    own = [t for t in graph.tensors if t.name.startswith("model.layers.1.")]
    assert layer.tensors == len(own)
    assert layer.bytes == sum(int(f.value) for t in own for f in t.external_data if f.key == "length")


def test_every_node_of_the_function_is_drawn_or_told(rank_graph: Graphs) -> None:
    graph = rank_graph(Mapping(2))
    drawn = {vertex.key for vertex in layer_graph(graph).vertices}
    function = graph.layer_functions["DecoderLayer"]
    left = {node.op_type for node in function.node if node.name not in drawn}
    assert left <= {"Identity", "Cast", "Transpose"}  # what prepares weights


def test_the_build_writes_that_of_rank_0(rank_graph: Graphs) -> None:
    graph = rank_graph(Mapping(2))
    bundle = graph.path.parents[1]
    path = write_layer_picture(bundle, 2)
    assert path == bundle / "report" / "layer.svg"
    assert path.read_text() == layer_picture(graph, ranks=2)


def test_a_graph_without_layers_is_refused(rank_graph: Graphs, tmp_path: Path) -> None:
    graph = rank_graph(Mapping())
    del graph.model.functions[:]
    with pytest.raises(UserError, match="no decoder layer to draw"):
        layer_picture(graph)
