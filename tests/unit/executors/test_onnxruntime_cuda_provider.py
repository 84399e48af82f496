"""Which execution provider a bundle runs on, and what is refused where CUDA's cannot be used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from toy_bundle import write_toy_bundle

from mm2c.serve import provider as serve_provider
from mm2c.serve.provider import served_provider
from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors import load as loading
from mm2c_runtime.executors import provider as module
from mm2c_runtime.executors.load import load_executor
from mm2c_runtime.executors.provider import (
    asked_provider,
    check_package,
    provider_lowering,
    session_providers,
)
from mm2c_runtime.executors.sessions import load_session
from mm2c_runtime.manifest import Manifest

GPU: Any = SimpleNamespace(kind="cuda", number=3)
WITH_CUDA = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MM2C_PROVIDER", raising=False)


def installed(monkeypatch: pytest.MonkeyPatch, providers: list[str], **versions: str) -> None:
    known = {name.replace("_", "-"): number for name, number in versions.items()}
    monkeypatch.setattr(module, "_version", lambda name: known.get(name, ""))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)


def test_asked_for_by_word_or_variable() -> None:
    assert asked_provider(None, environment={}) == "cpu"
    assert asked_provider(None, environment={"MM2C_PROVIDER": ""}) == "cpu"
    assert asked_provider(None, environment={"MM2C_PROVIDER": "cuda"}) == "cuda"
    assert asked_provider("cpu", environment={"MM2C_PROVIDER": "cuda"}) == "cpu"
    with pytest.raises(
        BundleError, match=r"(?s)'gpu' is no execution provider, which are cpu and cuda.*provider"
    ):
        asked_provider("gpu", environment={})
    with pytest.raises(BundleError, match=r"(?s)'rocm' is no .*environment variable MM2C_PROVIDER"):
        asked_provider(None, environment={"MM2C_PROVIDER": "rocm"})


def test_other_engines_have_none() -> None:
    assert asked_provider(None, engine="cuda", environment={"MM2C_PROVIDER": "cuda"}) == "cpu"
    with pytest.raises(BundleError, match="for the engine cuda, which has no execution providers"):
        asked_provider("cuda", engine="cuda", environment={})


def test_the_lowering_is_the_providers_own() -> None:
    assert provider_lowering("cpu", None) == "fast"
    assert provider_lowering("cpu", "portable") == "portable"
    assert provider_lowering("cuda", None) == "portable"
    assert provider_lowering("cuda", "portable") == "portable"
    with pytest.raises(BundleError, match=r"(?s)'fast' is made of .* does not run on cuda.*'portable'"):
        provider_lowering("cuda", "fast")


def test_one_onnx_runtime_with_cuda_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, WITH_CUDA, onnxruntime_gpu="1.31.1")
    check_package()
    installed(monkeypatch, WITH_CUDA)  # of a distribution with another name
    check_package()
    installed(monkeypatch, ["CPUExecutionProvider"], onnxruntime="1.31.1")
    with pytest.raises(BundleError, match=r"(?s)onnxruntime \S+ has no CUDAExecutionProvider.*'mm2c\[gpu\]'"):
        check_package()
    for providers in (WITH_CUDA, ["CPUExecutionProvider"]):
        installed(monkeypatch, providers, onnxruntime="1.31.1", onnxruntime_gpu="1.31.0")
        with pytest.raises(
            BundleError, match=r"(?s)1\.31\.1 and onnxruntime-gpu 1\.31\.0 are both.*uninstall"
        ):
            check_package()


def test_options_of_a_session_on_a_gpu() -> None:
    (name, options), *others = session_providers(GPU)
    assert (name, others) == ("CUDAExecutionProvider", ["CPUExecutionProvider"])
    assert options["device_id"] == "3"
    assert options["use_tf32"] == "0"
    assert all(isinstance(value, str) for value in options.values())
    assert session_providers(SimpleNamespace(kind="cpu")) == ["CPUExecutionProvider"]


def test_a_session_that_would_fall_back_to_the_cpu_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime itself only warns."""
    write_toy_bundle(tmp_path)
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(
            BundleError, match="cannot use its CUDAExecutionProvider, and would run on CPUExecution"
        ),
    ):
        load_session(tmp_path / "rank0/toy.000.onnx", 1, alone=False, providers=session_providers(GPU))


def test_an_executor_on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU for each rank, asked for before anything is loaded, and the bundle's tokens of KV cache for them."""
    from host_device import HostDevice

    manifest = write_toy_bundle(tmp_path)
    asked: list[int] = []

    def opened(ranks: int) -> list[HostDevice]:
        asked.append(ranks)
        return [HostDevice() for _ in range(ranks)]

    monkeypatch.setattr(module, "open_devices", opened)
    executor = load_executor(tmp_path, manifest, lowering="fast", threads=1, kv_tokens=20, provider="cuda")
    assert asked == [2]
    assert (executor.limits.max_rows, executor.kv.rows) == (2, 3)
    executor.close()


def test_this_machine_is_refused_by_name(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    with pytest.raises(BundleError, match="has no CUDAExecutionProvider, it has"):
        load_executor(
            tmp_path, write_toy_bundle(tmp_path), lowering="fast", threads=1, kv_tokens=None, provider="cuda"
        )


def test_without_onnx_runtime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_toy_bundle(tmp_path)
    monkeypatch.setitem(loading.sys.modules, "onnxruntime", None)
    for provider, extra in (("cpu", "cpu"), ("cuda", "gpu")):
        with pytest.raises(BundleError, match=rf"mm2c\[{extra}\]"):
            load_executor(
                tmp_path,
                manifest,
                lowering="fast",
                threads=1,
                kv_tokens=None,
                provider=provider,  # type: ignore[arg-type]
            )


def portable(manifest: Manifest, **mapping: int) -> Manifest:
    update: dict[str, Any] = {"lowerings": {"portable": manifest.lowerings["fast"]}}
    if mapping:
        update["mapping"] = manifest.mapping.model_copy(update=mapping)
    return manifest.model_copy(update=update)


def test_serve_refuses_before_a_server_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_toy_bundle(tmp_path)
    assert served_provider(tmp_path, manifest, None) is None
    assert served_provider(tmp_path, manifest, "cpu") == "cpu"
    with pytest.raises(BundleError, match="no execution provider"):
        served_provider(tmp_path, manifest, "metal")
    with pytest.raises(BundleError, match="has no lowering 'portable'"):
        served_provider(tmp_path, manifest, "cuda")
    ranks: list[int] = []
    monkeypatch.setattr(serve_provider, "check_machine", ranks.append)
    assert served_provider(tmp_path, portable(manifest), "cuda") == "cuda"
    assert served_provider(tmp_path, portable(manifest, dp=3), "cuda") == "cuda"  # three replicas
    monkeypatch.setenv("MM2C_PROVIDER", "cuda")
    assert served_provider(tmp_path, portable(manifest), None) is None
    assert ranks == [2, 6, 2]
