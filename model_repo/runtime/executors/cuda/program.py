"""A rank's program, ``cuda.json``: the list of nodes that one step evaluates, and the tensors that they read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from mm2c_runtime.errors import BundleError

FORMAT = 2
ABI = 1  # of the plugin library
DTYPES = ("f32", "bf16", "f16", "i32", "i64", "bool", "e4m3")
DOMAINS = ("", "mm2c")
_REBUILD = "build the bundle again with `mm2c build … --force`"
_STEP_INPUTS = ["input_ids", "past_len", "new_len", "block_table"]
_HEAD = ("first", "tokens", "width")
_TOGETHER = "step_tokens"  # i64[1], on the host: tokens of a rank in what attention groups exchange


@dataclass(frozen=True, slots=True)
class Kv:
    """Caches of this rank: per layer and side [pages, page, kv_heads, head_dim]; ``fp8`` is e4m3."""

    dtype: Literal["bf16", "fp8"]
    page: int
    layers: int
    kv_heads: int
    head_dim: int

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * (1 if self.dtype == "fp8" else 2)


@dataclass(frozen=True, slots=True)
class TensorType:
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Constant:
    """``data``: the elements, flat, in C order."""

    type: TensorType
    data: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """``domain`` "" is standard ONNX, "mm2c" the compiler's own ops. An input "" is one that the node does without."""

    name: str
    domain: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """The part of the vocabulary whose logits a rank has: ``tokens`` ids from ``first`` on, in ``width`` columns, of
    which the last ones may be padding."""

    first: int
    tokens: int
    width: int


@dataclass(frozen=True, slots=True)
class Program:
    """``logits``: "last" f32[rows, vocab] of each row's last token, "all" f32[rows, width, vocab]; where ``head`` is
    not None, those of this rank's part of the vocabulary alone: f32[rows, head.width].
    ``max_rows``, ``prefill_chunk`` and ``context`` are the limits it was built for, in rows and tokens."""

    library: str
    rank: int
    ranks: int
    kv: Kv
    vocab: int
    logits: Literal["last", "all"]
    context: int
    max_rows: int
    prefill_chunk: int
    weights_file: str
    head: Head | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Constant]
    weights: Mapping[str, TensorType]
    nodes: tuple[Node, ...]

    @property
    def columns(self) -> int:
        """Of its logits."""
        return self.vocab if self.head is None else self.head.width

    @property
    def together(self) -> bool:
        """Whether attention groups exchange their tokens: ``step_tokens`` is an input then."""
        return _TOGETHER in self.inputs

    @property
    def most_pages(self) -> int | None:
        """Kernels address any number."""
        return None

    @property
    def caches(self) -> tuple[str, ...]:
        """The inputs that are caches, which come last."""
        return self.inputs[len(_STEP_INPUTS) + self.together :]

    @property
    def pages_per_row(self) -> int:
        """Pages of a full row: the width of a block table."""
        return -(-self.context // self.kv.page)


def read_program(path: Path) -> Program:
    """Raises BundleError where the file is missing, is no program, or one for another runtime."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(
            f"a program of the bundle cannot be read: {error.strerror}", where=str(path), remedy=_REBUILD
        ) from None
    except ValueError as error:
        raise _invalid(path, f"it is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise _invalid(path, "it is not a JSON object")
    for key, expected in (("format", FORMAT), ("abi", ABI)):
        if raw.get(key) != expected:
            raise BundleError(
                f"the program has {key} {raw.get(key)!r}, this runtime reads {expected}",
                where=str(path),
                remedy=_REBUILD,
            )
    try:
        program = _program(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise _invalid(path, what) from None
    fault = _fault(program)
    if fault:
        raise _invalid(path, fault)
    return program


def _invalid(path: Path, what: str) -> BundleError:
    return BundleError(f"the program cannot be used: {what}", where=str(path), remedy=_REBUILD)


def _program(raw: dict[str, Any]) -> Program:
    kv = raw["kv"]
    return Program(
        library=_text(raw["library"]),
        rank=_whole(raw["rank"]),
        ranks=_whole(raw["ranks"]),
        kv=Kv(
            dtype=cast(Literal["bf16", "fp8"], _one_of(kv["dtype"], ("bf16", "fp8"))),
            **{name: _positive(kv[name]) for name in ("page", "layers", "kv_heads", "head_dim")},
        ),
        vocab=_positive(raw["vocab"]),
        logits=cast(Literal["last", "all"], _one_of(raw["logits"], ("last", "all"))),
        context=_positive(raw["context"]),
        max_rows=_positive(raw["max_rows"]),
        prefill_chunk=_positive(raw["prefill_chunk"]),
        weights_file=_text(raw["weights_file"]),
        head=None if raw["head"] is None else Head(**{n: _whole(raw["head"][n]) for n in _HEAD}),
        inputs=_names(raw["inputs"]),
        outputs=_names(raw["outputs"]),
        constants=_each(raw["constants"], lambda c: Constant(_type(c), tuple(c["data"]))),
        weights=_each(raw["weights"], _type),
        nodes=tuple(map(_node, raw["nodes"])),
    )


def _each(raw: dict[str, Any], make: Callable[[Any], Any]) -> dict[str, Any]:
    return {_text(name): make(value) for name, value in raw.items()}


def _type(raw: dict[str, Any]) -> TensorType:
    return TensorType(_one_of(raw["dtype"], DTYPES), tuple(map(_whole, raw["shape"])))


def _node(raw: dict[str, Any]) -> Node:
    return Node(
        name=_text(raw["name"]),
        domain=_one_of(raw["domain"], DOMAINS),
        op=_text(raw["op"]),
        inputs=tuple(name if name == "" else _text(name) for name in raw["inputs"]),
        outputs=_names(raw["outputs"]),
        attributes=dict(raw["attributes"]),
    )


def _names(raw: list[Any]) -> tuple[str, ...]:
    return tuple(map(_text, raw))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no name")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _positive(value: Any) -> int:
    if _whole(value) == 0:
        raise ValueError("a size is 0")
    return int(value)


def _one_of(value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is not one of {', '.join(map(repr, known))}")
    return str(value)


def _fault(program: Program) -> str | None:
    """What keeps the parts from fitting each other; None where they do."""
    if program.rank >= program.ranks:
        return f"rank {program.rank} of {program.ranks}"
    head = program.head
    if head is not None:
        inside = 0 < head.tokens <= head.width and head.first + head.tokens <= program.vocab
        if not inside or program.logits == "all":
            return f"its logits are of {head.tokens} tokens from {head.first} on, of {program.vocab}"
    caches = [f"{side}_cache.{layer}" for layer in range(program.kv.layers) for side in "kv"]
    if list(program.inputs) not in (_STEP_INPUTS + caches, [*_STEP_INPUTS, _TOGETHER, *caches]):
        return "its inputs are not those of a step and of its caches"
    if list(program.outputs) != ["logits", *(name.replace(".", "_out.") for name in caches)]:
        return "its outputs are not the logits and its caches"
    known = set(program.inputs)
    for name in [*program.constants, *program.weights]:
        if name in known:
            return f"{name} is there twice"
        known.add(name)
    for name, constant in program.constants.items():
        if len(constant.data) != _count(constant.type.shape):
            return f"constant {name} has {len(constant.data)} elements for {list(constant.type.shape)}"
    names = set()
    for node in program.nodes:
        if node.name in names:
            return f"two nodes are called {node.name}"
        names.add(node.name)
        for name in node.inputs:
            if name and name not in known:
                return f"node {node.name} reads {name}, which nothing before it makes"
        for name in node.outputs:
            if name in known:
                return f"node {node.name} makes {name}, which is there already"
            known.add(name)
    missing = [name for name in program.outputs if name not in known]
    return f"nothing makes its output {missing[0]}" if missing else None


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
