"""The parts of the executor for TensorRT by themselves: communicator, kernel cache, memory, and the double's API beside
the installed library's."""

from __future__ import annotations

import ctypes
import inspect
from pathlib import Path
from typing import Any

import pytest
import tensorrt_double
import torch
from toy_program import write_weights

from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.cuda.aligned import ALIGNMENT, aligned_empty
from mm2c_runtime.executors.cuda.collectives import SingleRank
from mm2c_runtime.executors.cuda.inputs import InputBuffer
from mm2c_runtime.executors.cuda.program import Kv, TensorType
from mm2c_runtime.executors.cuda.rows import LinearRows
from mm2c_runtime.executors.cuda.weights import Move, Place, laid_out, load_weights, open_weights, within
from mm2c_runtime.executors.tensorrt.kernel_cache import KernelCache, kernel_cache_path
from mm2c_runtime.executors.tensorrt.library import Library
from mm2c_runtime.executors.tensorrt.nccl import join_communicator, open_nccl
from mm2c_runtime.step import RowCopy, RowStep

CPU = torch.device("cpu")


class Nccl:
    """As much of libnccl as is called: ``fails`` names the call that does."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.calls = fails, list[Any]()

    def ncclGetUniqueId(self, pointer: Any) -> int:
        pointer._obj.internal = b"unique"
        return int(self.fails == "ncclGetUniqueId")

    def ncclCommInitRank(self, pointer: Any, ranks: int, unique: Any, rank: int) -> int:
        self.calls.append((ranks, bytes(memoryview(unique).cast("B")), rank))
        pointer._obj.value = 0x1234
        return 5 * int(self.fails == "ncclCommInitRank")

    def ncclCommDestroy(self, communicator: Any) -> int:
        self.calls.append(communicator.value)
        return 0

    def ncclGetErrorString(self, status: int) -> bytes:
        return b"invalid usage" if status == 5 else b"unhandled"


class SecondOfTwo(SingleRank):
    def __init__(self) -> None:
        super().__init__()
        self.rank, self.ranks = 1, 2

    def first_bytes(self, own: bytes) -> bytes:
        assert own == bytes(128)
        return b"given" + bytes(123)


def test_a_communicator_is_a_capsule_of_its_pointer() -> None:
    library = Nccl()
    made = join_communicator(SecondOfTwo(), CPU, library)
    assert library.calls == [(2, b"given" + bytes(123), 1)]
    assert type(made.handle).__name__ == "PyCapsule"
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    assert pointer(made.handle, b"ncclComm_t") == 0x1234
    made.close()
    made.close()
    assert library.calls[1:] == [0x1234]


def test_the_first_rank_makes_the_id() -> None:
    library = Nccl()
    join_communicator(SingleRank(), CPU, library)
    assert library.calls == [(1, b"unique" + bytes(122), 0)]


@pytest.mark.parametrize(
    ("call", "said"), [("ncclGetUniqueId", "unhandled"), ("ncclCommInitRank", "invalid usage")]
)
def test_nccl_that_fails(call: str, said: str) -> None:
    with pytest.raises(BundleError, match=f"{call} failed: {said}") as caught:
        join_communicator(SingleRank(), CPU, Nccl(call))
    assert "NCCL_DEBUG" in caught.value.remedy


def test_nccl_that_is_not_there() -> None:
    asked = []

    def load(name: str) -> Any:
        asked.append(name)
        raise OSError(f"{name}: cannot open shared object file")

    with pytest.raises(BundleError, match=r"which is not found: libnccl\.so\.2: cannot open") as caught:
        open_nccl(load)
    assert asked == ["libnccl.so.2", "libnccl.so"]
    assert "LD_LIBRARY_PATH" in caught.value.remedy


def test_kernels_are_kept_for_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "kernels.bin"
    config = tensorrt_double.IRuntimeConfig()
    first = KernelCache(path, writes=True)
    first.save()  # nothing was compiled
    assert not path.exists()
    first.use(config)
    first.save()
    assert path.read_bytes() == b"kernels"
    assert list(path.parent.iterdir()) == [path]
    path.write_bytes(b"of another release")
    again = KernelCache(path, writes=False)
    again.use(config)
    assert config.cache is not None
    again.save()
    assert path.read_bytes() == b"of another release"
    KernelCache(None, writes=True).use(config)


def test_a_folder_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = KernelCache(tmp_path / "file" / "kernels.bin", writes=True)
    cache.use(tensorrt_double.IRuntimeConfig())
    cache.save()


def test_kernels_are_of_a_release_a_gpu_and_plans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MM2C_CACHE", str(tmp_path))
    asked = [
        ("1.7", "RTX", ["a"]),
        ("1.8", "RTX", ["a"]),
        ("1.7", "other", ["a"]),
        ("1.7", "RTX", ["a", "b"]),
    ]
    paths = {kernel_cache_path(*each) for each in asked}
    assert len(paths) == 4
    assert all(path.is_relative_to(tmp_path) for path in paths)


def test_messages_of_the_library_reach_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "mm2c_runtime.executors.tensorrt.library.log.log", lambda level, text, message: said.append(message)
    )
    library = Library(tensorrt_double.module())
    logger, severity = library.logger(), tensorrt_double.Severity
    for level, message in ((severity.VERBOSE, "v"), (severity.INFO, "i"), (severity.ERROR, "broken")):
        logger.log(level, message)
    assert said == ["i", "broken"]
    assert library.said() == "broken"
    assert library.said() == "the library gives no reason"


def test_linear_rows_are_copied_and_cleared() -> None:
    rows = LinearRows(Kv("bf16", 0, 2, 2, 128), 4, 5, CPU)
    assert len(rows.caches) == 4
    for place, cache in enumerate(rows.caches):
        assert cache.shape == (4, 2, 5, 128)
        assert cache.is_contiguous()
        assert cache.data_ptr() % ALIGNMENT == 0
        assert not bool(cache.any())
        cache.copy_((torch.arange(4).view(4, 1, 1, 1) + 10 * place).expand(4, 2, 5, 128))
    rows.move(RowCopy(3, 1, 2))
    for place, cache in enumerate(rows.caches):
        assert cache[1, :, :2].unique().tolist() == [3 + 10 * place]
        assert cache[1, :, 2:].unique().tolist() == [1 + 10 * place]
    rows.clear(RowStep(1, [0], 2, 1, True))
    assert not bool(rows.caches[3][1, :, :3].any())
    assert bool(rows.caches[3][1, :, 3:].all())
    buffer = InputBuffer(4, 4, CPU)
    _, bound = rows.bound(2, buffer.views(2, 1))
    assert [x.shape for x in bound] == [(2, 2, 5, 128)] * 4
    assert bound[1].data_ptr() == rows.caches[1][2].data_ptr()
    for wrong in (RowCopy(4, 0, 1), RowCopy(0, 4, 1), RowCopy(0, 1, 6)):
        with pytest.raises(ValueError, match=r"row 4 of 4|6 tokens of row 0"):
            rows.move(wrong)
    with pytest.raises(ValueError, match="row 0: 5 \\+ 1 tokens in 5 places"):
        rows.give(RowStep(0, [1], 5, 1, True))


@pytest.mark.parametrize("shape", [(3, 5), (), (0, 7), (256,)])
def test_memory_is_aligned(shape: tuple[int, ...]) -> None:
    for dtype in (torch.uint8, torch.bfloat16, torch.int64):
        tensor = aligned_empty(shape, dtype, CPU)
        assert tensor.shape == shape
        assert tensor.dtype == dtype
        assert tensor.numel() == 0 or tensor.data_ptr() % ALIGNMENT == 0


def test_inputs_lie_where_tensorrt_can_read_them() -> None:
    for ids, rows in ((1, 1), (48, 7), (100, 65)):
        views = InputBuffer(ids, rows, CPU).views(1, 1)
        assert all(x.data_ptr() % ALIGNMENT == 0 for x in (views.ids, views.past, views.new, views.table_row))


def test_weights_on_multiples_of_256_bytes(tmp_path: Path) -> None:
    sizes = (3, 64, 1, 128, 0, 700, 5)
    tensors = {f"t{n}": torch.arange(size, dtype=torch.float32) + n for n, size in enumerate(sizes)}
    write_weights(tmp_path / "weights", tensors)
    types = {name: TensorType("f32", tuple(x.shape)) for name, x in tensors.items() if name != "t3"}
    found = load_weights(open_weights(tmp_path / "weights", types), CPU, ALIGNMENT)
    assert found.keys() == types.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, tensors[name])
        assert tensor.numel() == 0 or tensor.data_ptr() % ALIGNMENT == 0


def test_what_lies_right_is_copied_as_it_is() -> None:
    kind = TensorType("f32", (64,))
    places = {"a": Place(kind, 0, 256), "b": Place(kind, 256, 512), "c": Place(kind, 516, 772)}
    found, moves = laid_out(places, 772, 256)
    assert [found[name].begin for name in "abc"] == [0, 256, 512]
    assert moves == [Move(0, 0, 512), Move(516, 512, 256)]
    pieces = [piece for begin in range(0, 772, 100) for piece in within(moves, begin, min(begin + 100, 772))]
    covered = [(first, last) for first, last, _ in pieces]
    assert covered[0] == (0, 100)
    assert (516, 600) in covered
    assert sum(last - first for first, last in covered) == 768
    assert {(first, target) for first, _, target in pieces} >= {(0, 0), (516, 512), (700, 696)}


CLASSES = {
    "Runtime": tensorrt_double.Runtime,
    "ICudaEngine": tensorrt_double.ICudaEngine,
    "IExecutionContext": tensorrt_double.IExecutionContext,
    "IRuntimeConfig": tensorrt_double.IRuntimeConfig,
    "IRuntimeCache": tensorrt_double.IRuntimeCache,
}
ENUMS = (
    "DataType",
    "TensorIOMode",
    "TensorLocation",
    "EngineValidity",
    "EngineInvalidityDiagnostics",
    "ExecutionContextAllocationStrategy",
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_the_double_has_the_api_of_the_library(name: str) -> None:
    """Methods with the parameters, and the properties, that its documentation names."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    theirs = getattr(trt, name)
    for member, ours in vars(CLASSES[name]).items():
        if member.startswith("_"):
            continue
        assert hasattr(theirs, member), member
        if not inspect.isfunction(ours):
            continue
        text = str(getattr(theirs, member).__doc__)
        for parameter in list(inspect.signature(ours).parameters)[1:]:
            assert f"{parameter}:" in text, (member, parameter)


@pytest.mark.parametrize("name", ENUMS)
def test_the_double_has_the_words_of_the_library(name: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    theirs = getattr(trt, name).__members__
    for member, value in getattr(tensorrt_double, name).__members__.items():
        assert member in theirs
        if name == "EngineInvalidityDiagnostics":
            assert int(theirs[member]) == int(value)
    severity = tensorrt_double.Severity.__members__
    assert set(severity) == set(trt.ILogger.Severity.__members__)


def test_the_librarys_own_logger_is_one() -> None:
    """A subclass of its ILogger, which its Runtime takes without a GPU."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    library = Library(trt)
    runtime = trt.Runtime(library.logger())
    validity, _ = runtime.get_engine_validity(b"no plan" * 100)
    assert validity == trt.EngineValidity.INVALID
    assert runtime.deserialize_cuda_engine(b"no plan" * 100) is None
    assert library.said() != "the library gives no reason"
