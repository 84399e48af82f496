"""Which variants of which kernels are built for an architecture.

A kernel file ``<kernel>.py`` has the ``@triton.jit`` function ``<kernel>``, its run-time parameters ``PARAMETERS``
(name -> Triton type, in order) and ``variants(sm, tiles) -> list[Variant]``.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

KERNELS = Path(__file__).parent
SMS = (80, 89, 90, 100, 120)  # sm_80 also serves 8.6 and 8.7

TileTable = Mapping[str, "list[dict[str, Any]]"]
_SCALARS = {"i32": "i", "i64": "l", "fp32": "f"}  # letters of the launch interface; pointers are "p"
_ROW_ONLY = ("max_tokens", "alternative")


class CatalogueError(Exception):
    """A kernel file or a tile table breaks the rules; the message names the file and the rule."""


@dataclass(frozen=True)
class Variant:
    """One cubin to build: a kernel with its compile-time constants.

    ``name`` is unique per architecture and tells the tile ("moe_gate_up.fp8.bm16.bn64.bk128"). ``types`` fills the
    ``{name}`` places of PARAMETERS. ``multiples`` names the int parameters that are always multiples of 16; pointers
    are 16-byte aligned in any case.
    """

    kernel: str
    name: str
    constants: Mapping[str, int | bool]
    types: Mapping[str, str] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 1
    multiples: tuple[str, ...] = ()

    def parameters(self, declared: Mapping[str, str]) -> dict[str, str]:
        """Run-time parameters in order with their Triton types, places filled in."""
        try:
            return {name: kind.format(**self.types) for name, kind in declared.items()}
        except KeyError as missing:
            raise CatalogueError(f"variant {self.name}: no type given for {{{missing.args[0]}}}") from None

    def table_constants(self) -> dict[str, int]:
        """What a row of the tile table may select by: the constants, num_warps and num_stages, as ints."""
        values = {name: int(value) for name, value in self.constants.items()}
        return {**values, "num_warps": self.num_warps, "num_stages": self.num_stages}


def letters(parameters: Mapping[str, str]) -> str:
    """One letter a parameter: p pointer, i int32, l int64, f float32."""
    found = ""
    for name, kind in parameters.items():
        letter = "p" if kind.startswith("*") else _SCALARS.get(kind)
        if letter is None:
            raise CatalogueError(f"parameter {name}: type {kind} cannot be passed at launch")
        found += letter
    return found


def kernel_names() -> list[str]:
    """Kernel files: those with a PARAMETERS of their own. Imports nothing."""
    names = []
    for path in sorted(KERNELS.glob("*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        targets = [t for node in body if isinstance(node, ast.Assign) for t in node.targets]
        targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
        if any(isinstance(target, ast.Name) and target.id == "PARAMETERS" for target in targets):
            names.append(path.stem)
    return names


def load_kernel(name: str) -> ModuleType:
    """The kernel's module. Imports triton."""
    module = importlib.import_module(f"mm2c_plugins.kernels.{name}")
    for needed in (name, "variants"):
        if not hasattr(module, needed):
            raise CatalogueError(f"{name}.py: has PARAMETERS but no {needed}")
    return module


def load_tiles(sm: int, folder: Path = KERNELS / "tiles") -> dict[str, list[dict[str, Any]]]:
    """Tile rows by op for one architecture, checked; no file is an empty table."""
    path = folder / f"sm_{sm}.json"
    if not path.exists():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CatalogueError(f"{path.name}: {error}") from None
    for op, rows in table.items():
        _check_rows(f"{path.name}: {op}", rows)
    return dict(table)


def _check_rows(where: str, rows: Any) -> None:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise CatalogueError(f"{where}: a non-empty list of rows is needed")
    for row in rows:
        odd = [key for key, value in row.items() if not isinstance(value, int)]
        if "max_tokens" not in row or odd:
            raise CatalogueError(f"{where}: every row has max_tokens and only whole numbers (wrong: {odd})")
    limits = [row["max_tokens"] for row in rows if not row.get("alternative")]
    if limits != sorted(set(limits)):
        raise CatalogueError(f"{where}: max_tokens must rise from row to row")


def row_constants(row: Mapping[str, Any]) -> dict[str, int]:
    """What a tile row asks of the variant it selects."""
    return {name: int(value) for name, value in row.items() if name not in _ROW_ONLY}


def collect(sm: int, tiles: TileTable | None = None, names: list[str] | None = None) -> list[Variant]:
    """Every variant to build for ``sm``, in the order of the kernel files. Imports triton."""
    table = load_tiles(sm) if tiles is None else tiles
    found: dict[str, Variant] = {}
    for name in kernel_names() if names is None else names:
        for variant in load_kernel(name).variants(sm, table):
            _check_variant(name, variant)
            if found.setdefault(variant.name, variant) != variant:
                raise CatalogueError(
                    f"{name}.py: two different variants are called {variant.name} on sm_{sm}"
                )
    return list(found.values())


def _check_variant(kernel: str, variant: Variant) -> None:
    if variant.kernel != kernel:
        raise CatalogueError(f"{kernel}.py: variant {variant.name} says it is of kernel {variant.kernel}")
    if not re.fullmatch(r"[A-Za-z0-9_.]+", variant.name):
        raise CatalogueError(f"{kernel}.py: {variant.name!r} must be letters, digits, dots and underscores")
    wrong = [name for name, value in variant.constants.items() if not isinstance(value, int)]
    if wrong:
        raise CatalogueError(
            f"{kernel}.py: constants of {variant.name} must be whole numbers or flags: {wrong}"
        )
