"""``report/layer.svg``: one decoder layer of rank 0, to look at before anything runs."""

from __future__ import annotations

from pathlib import Path

PICTURE = "report/layer.svg"


def write_layer_picture(bundle: Path, ranks: int) -> Path:
    """Draw from ``rank0/model.onnx``, which must be there; ``ranks``: of a replica. Returns the picture's path."""
    from mm2c.bundle.rank_graph_file import load_graph
    from mm2c.draw.layer_picture import layer_picture

    path = bundle / PICTURE
    path.parent.mkdir(exist_ok=True)
    path.write_text(layer_picture(load_graph(bundle, 0), ranks=ranks), encoding="utf-8")
    return path
