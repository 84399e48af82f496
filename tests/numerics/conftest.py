"""What the layouts of one checkpoint share: its trace and the reference's answers, each made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from remembering import RememberingReference

import mm2c.graphs_cuda
import mm2c.graphs_onnxruntime
import mm2c.graphs_tensorrt
import mm2c.trace
from mm2c.pipeline import BuildRequest, build_bundle

SIZES = dict(context=256, max_rows=6, prefill_chunk=48)


@pytest.fixture(scope="module")
def references() -> dict[Path, RememberingReference]:
    return {}


@pytest.fixture(scope="module", autouse=True)
def _one_trace_for_all_layouts() -> Iterator[None]:
    """A trace does not depend on tp and ep, and no pass changes it: builds of one checkpoint share it."""
    original, known = mm2c.trace.trace, {}
    users = (mm2c.trace, mm2c.graphs_cuda, mm2c.graphs_onnxruntime, mm2c.graphs_tensorrt)

    def remembering(config: Any, formats: Any, options: Any, recipes: Any, **more: Any) -> Any:
        key = (
            config,
            formats,
            options.context,
            options.all_logits,
            tuple(recipes.items()),
            *sorted(more.items()),
        )
        if key not in known:
            known.clear()
            known[key] = original(config, formats, options, recipes, **more)
        return known[key]

    for user in users:
        user.trace = remembering
    yield
    for user in users:
        user.trace = original


@pytest.fixture(scope="session")
def cpu_bundle(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint for ONNX Runtime."""
    output = tmp_path_factory.mktemp("cpu") / "bundle"
    request = BuildRequest(source=str(tiny_m2), output=output, engine="onnxruntime", cache=False, **SIZES)
    build_bundle(request)
    return output


@pytest.fixture(scope="session")
def cuda_bundle(tiny_m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for the cuda engine, without its library."""
    from cuda_reference import build_cuda_bundle

    folder = tmp_path_factory.mktemp("cuda")
    return build_cuda_bundle(tiny_m2, folder / "bundle", folder / "library", **SIZES)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch's threads wait for each other by spinning; small tensors gain nothing from them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
