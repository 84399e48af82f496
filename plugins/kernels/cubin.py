"""One variant: what its cubin is made from, the cubin, and its record in kernels.json."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm2c_plugins.kernels import assemble, catalogue, toolchain
from mm2c_plugins.kernels.catalogue import Variant

FORMAT = 1  # of kernels.json
Record = dict[str, Any]
_DOT = re.compile(r"tt\.dot [^:\n]*: tensor<((?:\d+x)+)(\w+)> \* tensor<((?:\d+x)+)\w+>")


@dataclass(frozen=True)
class Task:
    """``key`` changes with everything that the cubin depends on; ``sources`` is the digest of the files alone."""

    sm: int
    variant: Variant
    key: str
    sources: str
    debug: bool

    @property
    def place(self) -> str:
        return f"cubins/sm_{self.sm}/{self.variant.name}.cubin"


def source_files(kernel: str) -> list[Path]:
    """The kernel's file and the files of this package that it imports, however deep; not the catalogue."""
    seen: dict[str, Path] = {}
    waiting = [kernel]
    while waiting:
        name = waiting.pop()
        path = catalogue.KERNELS / f"{name}.py"
        if name in seen or name == "catalogue" or not path.exists():
            continue
        seen[name] = path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module == __package__ and isinstance(node, ast.ImportFrom):
                waiting += [alias.name for alias in node.names]
            elif module and module.startswith(f"{__package__}."):
                waiting.append(module.rpartition(".")[2])
    return [seen[name] for name in sorted(seen)]


@functools.cache
def _source_digest(kernel: str) -> str:
    whole = hashlib.sha256()
    for path in [*source_files(kernel), Path(assemble.__file__), Path(__file__)]:
        whole.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()


def plan(sm: int, kernels: list[str] | None, debug: bool) -> list[Task]:
    """A task for every variant of ``sm``. Imports triton."""
    tasks = []
    for variant in catalogue.collect(sm, names=kernels):
        sources = _source_digest(variant.kernel)
        parts = [toolchain.versions(), sources, sm, debug, repr(variant)]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        tasks.append(Task(sm, variant, key, sources, debug))
    return tasks


def compile_variant(task: Task) -> tuple[bytes, Record]:
    """Cubin and record of one variant. Raises what Triton, the catalogue and the assembler raise."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    started = time.monotonic()
    variant = task.variant
    module = catalogue.load_kernel(variant.kernel)
    function = getattr(module, variant.kernel)
    if _source_digest(variant.kernel) != task.sources:  # a worker imports a kernel when it meets it
        raise catalogue.CatalogueError(f"{variant.kernel}: its sources changed during the build: build again")
    parameters = variant.parameters(module.PARAMETERS)
    constants = {
        **variant.constants,
        **({"DEBUG": True} if task.debug and "DEBUG" in variant.constants else {}),
    }
    _check_names(variant, list(function.arg_names), list(parameters), list(constants))
    signature = {name: parameters.get(name, "constexpr") for name in function.arg_names}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in variant.multiples
    }
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "ptx_version": toolchain.PTX,
        "enable_fp_fusion": True,
        "debug": task.debug,
        "sanitize_overflow": task.debug,
    }
    made: dict[str, Any] = {}
    triton.knobs.runtime.add_stages_inspection_hook = functools.partial(_own_assembly, made, task.sm)
    compiled = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", task.sm, 32),
        options=options,
    )
    cubin = compiled.asm["cubin"]
    record = {
        "kernel": variant.kernel,
        "name": variant.name,
        "sm": task.sm,
        "key": task.key,
        "cubin": task.place,
        "bytes": len(cubin),
        "sha256": hashlib.sha256(cubin).hexdigest(),
        "num_warps": compiled.metadata.num_warps,
        "num_stages": variant.num_stages,
        "shared": compiled.metadata.shared,
        "types": catalogue.letters(parameters),
        "declared": parameters,
        "constants": {**variant.table_constants(), **{name: int(value) for name, value in constants.items()}},
        "multiples": list(variant.multiples),
        "dots": matrix_products(compiled.asm["ttir"]),
        "debug": task.debug,
        **made["figures"],
        "seconds": round(time.monotonic() - started, 2),
    }
    return cubin, record


def _check_names(variant: Variant, taken: list[str], parameters: list[str], constants: list[str]) -> None:
    odd = [name for name in variant.multiples if name not in parameters]
    if odd:
        raise catalogue.CatalogueError(
            f"{variant.kernel}.py: multiples of {variant.name} are no parameters: {odd}"
        )
    if taken[: len(parameters)] != parameters or sorted(taken[len(parameters) :]) != sorted(constants):
        raise catalogue.CatalogueError(
            f"{variant.kernel}.py: its function takes {', '.join(taken)}; PARAMETERS and the constants of"
            f" {variant.name} are {', '.join([*parameters, *constants])}"
        )


def _own_assembly(made: dict[str, Any], sm: int, *call: Any) -> tuple[str, str] | None:
    """Triton's hook: called bare for a cache key, and with the stages before they run. The last one becomes ours."""
    if not call:
        return "mm2c", "mm2c"
    stages = call[1]

    def to_cubin(ptx: str, metadata: dict[str, Any]) -> bytes:
        if metadata["global_scratch_size"] or metadata["profile_scratch_size"]:
            raise assemble.AssemblyError("the kernel needs scratch memory, which no launch provides")
        cubin, figures = assemble.assemble(assemble.strip_scratch(ptx), sm)
        made["figures"] = figures.figures()
        return cubin

    stages["cubin"] = to_cubin
    return None


def matrix_products(ttir: str) -> list[dict[str, Any]]:
    """The tl.dot of a kernel after its constants are filled in: {"m", "n", "k", "type" of the left operand}."""
    found = []
    for left, kind, right in _DOT.findall(ttir):
        m, k = (int(side) for side in left.rstrip("x").split("x")[-2:])
        product = {"m": m, "n": int(right.rstrip("x").split("x")[-1]), "k": k, "type": kind}
        if product not in found:
            found.append(product)
    return found
