"""One decoder layer of a rank as an SVG picture."""

from __future__ import annotations

from collections import defaultdict

from mm2c.bundle.rank_graph_file import RankGraphFile
from mm2c.draw import svg
from mm2c.draw.layer_graph import Edge, Kind, LayerGraph, Vertex, layer_graph, size_text
from mm2c.draw.layout import GAP_X, MARGIN, Layout, Place, lay_out

TITLE, SUBTITLE, NOTE = 8.8, 6.4, 5.9  # px of a character, on the safe side
LINE, NOTE_HEIGHT, PADDING, NARROWEST = 16.0, 17.0, 14.0, 120.0  # px
LEGEND: dict[Kind, str] = {
    "plugin": "plugin op",
    "collective": "collective: ranks exchange",
    "dialect": "mm2c op without plugin",
    "standard": "standard ONNX op",
    "cache": "KV cache",
    "end": "hidden states in, out",
}
STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
.paper { fill: #ffffff; } text { fill: #1f2328; }
.heading { font-size: 17px; font-weight: 600; } .remark { font-size: 12px; fill: #57606a; }
.title { font-size: 13px; font-weight: 600; } .subtitle { font-size: 11px; }
.note text { font-size: 10px; }
.value { font-size: 10px; fill: #57606a; paint-order: stroke; stroke: #ffffff; stroke-width: 3px; }
.box path, .box rect { stroke-width: 1.5; } .lid, .ear { fill: none; }
.standard rect { fill: #f6f8fa; stroke: #8c959f; }
.dialect rect { fill: #eef3f8; stroke: #4d6a88; stroke-dasharray: 5 3; }
.plugin path { fill: #dbeafe; stroke: #1d4ed8; stroke-width: 2; }
.collective path { fill: #ffe8cc; stroke: #c2410c; stroke-width: 2; }
.cache path { fill: #dcfce7; stroke: #15803d; } .cache path.lid { fill: none; }
.end rect { fill: #f3e8ff; stroke: #7e22ce; }
.note path { fill: #fffbe6; stroke: #a38a1f; stroke-width: 1; } .note path.ear { fill: none; }
.edge { fill: none; stroke: #57606a; stroke-width: 1.3; } .tip { fill: #57606a; }
@media (prefers-color-scheme: dark) {
.paper { fill: #0d1117; } text { fill: #e6edf3; } .remark { fill: #9da7b3; }
.value { fill: #9da7b3; stroke: #0d1117; }
.standard rect { fill: #161b22; stroke: #6e7681; } .dialect rect { fill: #17202b; stroke: #7d9cbf; }
.plugin path { fill: #14284f; stroke: #6ea8fe; } .collective path { fill: #4a2410; stroke: #fb923c; }
.cache path { fill: #0f3320; stroke: #4ade80; } .end rect { fill: #2e1a47; stroke: #c084fc; }
.note path { fill: #2b2710; stroke: #b9a13a; } .edge { stroke: #9da7b3; } .tip { fill: #9da7b3; }
}
"""


def layer_picture(graph: RankGraphFile, *, ranks: int = 1) -> str:
    """SVG text: the layer that most layers are like, with this rank's sizes; ``ranks``: of its replica.

    Plugin ops and collectives differ in colour and in shape, weights hang below what reads them with dtype, sizes
    and bytes; the colours follow the reader's light or dark scheme. Equal graphs give equal bytes.

    Raises:
        UserError: the graph has no outlined decoder layer.
    """
    layer = layer_graph(graph)
    ports = _ports(layer)
    blocks = {vertex.key: _size(vertex, ports[vertex.key]) for vertex in layer.vertices}
    ordered = _sources_first(layer)
    layout = lay_out({key: blocks[key] for key in ordered}, [(e.source, e.target) for e in layer.edges])
    head, top = _heading(layer, graph.rank, ranks)
    width = max(layout.width, _legend_width())
    shift = (width - layout.width) / 2
    body = [*_edges(layer, layout), *(_block(v, layout.places[v.key]) for v in layer.vertices)]
    height = top + layout.height
    arrow = svg.element(
        "marker", svg.path(["M 0 0 L 7 3.5 L 0 7 Z"], class_="tip"), id="arrow", viewBox="0 0 7 7", refX="6.5",
        refY="3.5", markerWidth="7", markerHeight="7", orient="auto",
    )  # fmt: skip
    parts = [
        svg.element("title", svg.text_of(f"{layer.function} of rank {graph.rank}")),
        svg.element("style", STYLE),
        svg.element("defs", arrow),
        svg.element("rect", x=0, y=0, width=width, height=height, class_="paper"),
        *head,
        svg.element("g", "\n".join(body), transform=f"translate({svg.number(shift)} {svg.number(top)})"),
    ]
    size = {"width": width, "height": height}
    return (
        svg.element(
            "svg", "\n".join(parts), xmlns="http://www.w3.org/2000/svg", role="img",
            viewBox=f"0 0 {svg.number(width)} {svg.number(height)}", **size,
        )
        + "\n"
    )  # fmt: skip


def _sources_first(layer: LayerGraph) -> list[str]:
    """Keys in an order in which no edge points back; the graph's own but for its ends."""
    before: dict[str, set[str]] = defaultdict(set)
    for edge in layer.edges:
        before[edge.target].add(edge.source)
    ordered: dict[str, None] = {}
    waiting = [vertex.key for vertex in layer.vertices]
    while waiting:
        ready = [key for key in waiting if before[key] <= ordered.keys()]
        ordered.update(dict.fromkeys(ready))
        waiting = [key for key in waiting if key not in ordered]
    return list(ordered)


def _box_height(vertex: Vertex) -> float:
    rim = 8 if vertex.kind == "cache" else 0
    return PADDING + LINE * (2 if vertex.subtitle else 1) + rim


def _ports(layer: LayerGraph) -> dict[str, dict[int, str]]:
    """Of each box the outputs that are read, in order, with what is written beside them."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for edge in sorted(layer.edges, key=lambda edge: edge.port):
        found[edge.source][edge.port] = edge.label
    return found


def _size(vertex: Vertex, ports: dict[int, str]) -> tuple[float, float]:
    """Width and height of a box with its notes; wide enough for the values that leave it side by side."""
    sides = 44 if vertex.kind in ("collective", "end") else 26
    texts = [len(vertex.title) * TITLE + sides, len(vertex.subtitle) * SUBTITLE + sides]
    texts += [len(note) * NOTE + 32 for note in vertex.notes]
    if len(ports) > 1:
        texts.append(len(ports) * (max(map(len, ports.values())) * NOTE + 12))
    return max(NARROWEST, *texts), _box_height(vertex) + NOTE_HEIGHT * len(vertex.notes)


def _block(vertex: Vertex, place: Place) -> str:
    height = _box_height(vertex)
    line = place.y + PADDING / 2 + 11 + (8 if vertex.kind == "cache" else 0)
    parts = [_shape(vertex.kind, place.x, place.y, place.width, height)]
    parts.append(svg.label(vertex.title, place.center, line + 1, "title", "middle"))
    if vertex.subtitle:
        parts.append(svg.label(vertex.subtitle, place.center, line + LINE, "subtitle", "middle"))
    box = svg.element("g", "".join(parts), class_=f"box {vertex.kind}")
    notes = []
    for i, text in enumerate(vertex.notes):
        top = place.y + height + i * NOTE_HEIGHT
        sheet = svg.note(place.x + 8, top, place.width - 16, NOTE_HEIGHT)
        notes.append(svg.element("g", sheet + svg.label(text, place.x + 14, top + 12, "text"), class_="note"))
    return box + "".join(notes)


def _shape(kind: Kind, x: float, y: float, width: float, height: float) -> str:
    if kind == "plugin":
        return svg.octagon(x, y, width, height)
    if kind == "collective":
        return svg.hexagon(x, y, width, height)
    if kind == "cache":
        return svg.cylinder(x, y, width, height)
    return svg.rounded(x, y, width, height, {"end": height / 2, "standard": 7}.get(kind, 0))


def _edges(layer: LayerGraph, layout: Layout) -> list[str]:
    """Lines from below a box, where its notes end, to the top of another; each value is labelled once."""
    ports = _ports(layer)
    arriving: dict[str, list[Edge]] = defaultdict(list)
    for edge in layer.edges:
        arriving[edge.target].append(edge)
    lines, labels, told = [], [], set()
    for edge in layer.edges:
        start, end = layout.places[edge.source], layout.places[edge.target]
        leaving = list(ports[edge.source])
        first = (_spread(start, leaving.index(edge.port), len(leaving), 1.0), start.y + start.height)
        beside = sorted(arriving[edge.target], key=lambda e: _last_x(e, layout))
        last = (_spread(end, beside.index(edge), len(beside), 0.5), end.y - 1)
        lines.append(svg.curve([first, *layout.bends[edge.source, edge.target], last]))
        if edge.label and (edge.source, edge.port) not in told:
            told.add((edge.source, edge.port))
            labels.append(svg.label(edge.label, first[0] + 6, first[1] + 12, "value"))
    return lines + labels


def _last_x(edge: Edge, layout: Layout) -> tuple[float, int]:
    """Where an edge comes from, as its target sees it."""
    bends = layout.bends[edge.source, edge.target]
    return (bends[-1][0] if bends else layout.places[edge.source].center, edge.port)


def _spread(place: Place, index: int, count: int, share: float) -> float:
    """The middle of one of ``count`` equal parts of a box's inner ``share``."""
    return place.center + share * place.width * ((index + 0.5) / count - 0.5)


def _heading(layer: LayerGraph, rank: int, ranks: int) -> tuple[list[str], float]:
    """Title, remark and legend; and the height that they take."""
    numbers = layer.layers
    which = f"layers {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"layer {numbers[0]}"
    exchange = ", P tokens of an exchange" if any("P" in edge.label for edge in layer.edges) else ""
    tensors = f"{layer.tensors} tensors, {size_text(layer.bytes)} a layer"
    remark = f"{tensors}. Sizes are this rank's: B rows, S tokens of each{exchange}."
    x, y = MARGIN, MARGIN + 40
    parts = [
        svg.label(f"Decoder layer ({which}) on rank {rank} of {ranks}", MARGIN, MARGIN + 6, "heading"),
        svg.label(remark, MARGIN, MARGIN + 26, "remark"),
    ]
    for kind, text in LEGEND.items():
        parts.append(svg.element("g", _shape(kind, x, y, 40, 24), class_=f"box {kind}"))
        parts.append(svg.label(text, x + 48, y + 16, "subtitle"))
        x += 48 + len(text) * SUBTITLE + GAP_X / 2
    parts.append(svg.element("g", svg.note(x, y + 3, 40, NOTE_HEIGHT), class_="note"))
    parts.append(svg.label("weight", x + 48, y + 16, "subtitle"))
    return parts, y + 24 + 8


def _legend_width() -> float:
    return 2 * MARGIN + sum(48 + len(text) * SUBTITLE + GAP_X / 2 for text in (*LEGEND.values(), "weight"))
