"""The kernels' build tools where there is no triton: finding them, the tile tables, the gates and the generated C++."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mm2c_plugins.kernels import assemble, catalogue, disassemble, embed, gates, report, toolchain
from mm2c_plugins.kernels.catalogue import CatalogueError, Variant

PLUGINS = Path(catalogue.__file__).parents[1]

PTX = """.version 9.0
.target sm_90a
.visible .entry twice(
\t.param .u64 .ptr .global .align 1 twice_param_0,
\t.param .u32 twice_param_1,
\t.param .u64 .ptr .global .align 1 twice_param_2,
\t.param .u64 .ptr .global .align 1 twice_param_3
)
.reqntid 128
{
\tld.param.b64 \t%rd1, [twice_param_0];
\tld.param.b32 \t%r1, [twice_param_1];
}
"""


def record(**changes: Any) -> dict[str, Any]:
    """A kernel without a fault."""
    good = {
        "kernel": "moe_gate_up",
        "name": "moe_gate_up.bm128",
        "sm": 90,
        "cubin": "cubins/sm_90/moe_gate_up.bm128.cubin",
        "bytes": 16,
        "sha256": "00",
        "num_warps": 8,
        "shared": 100000,
        "types": "ppi",
        "declared": {"x": "*bf16", "w": "*fp8e4nv", "T": "i32"},
        "constants": {"BM": 128, "num_warps": 8, "num_stages": 3},
        "dots": [{"m": 128, "n": 64, "k": 128, "type": "bf16"}],
        "debug": False,
        "entry": "moe_gate_up",
        "parameters": 3,
        "target": "sm_90a",
        "ptx_version": "9.0",
        "registers": 200,
        "stack": 0,
        "spills": 0,
        "instructions": {"HGMMA": 8},
        "seconds": 1.0,
    }
    return {**good, **changes}


def fake_ptxas(folder: Path, version: str) -> Path:
    path = folder / "ptxas"
    release = ".".join(version.split(".")[:2])
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{version}'\n")
    path.chmod(0o755)
    return path


def test_only_an_assembler_of_cuda_13_0_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolchain.find_ptxas.cache_clear()
    monkeypatch.setenv("MM2C_PTXAS", str(fake_ptxas(tmp_path, "13.0.48")))
    assert toolchain.find_ptxas().version == "13.0.48"

    toolchain.find_ptxas.cache_clear()
    fake_ptxas(tmp_path, "13.4.1")
    with pytest.raises(toolchain.ToolMissing, match=r"no ptxas of CUDA 13\.0 \(.*is 13\.4\.1\)"):
        toolchain.find_ptxas()
    toolchain.find_ptxas.cache_clear()


def test_the_machines_assembler_comes_before_the_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, wheel = tmp_path / "first", tmp_path / "site" / "nvidia" / "cu13" / "bin"
    for folder, version in ((first, "13.0.48"), (wheel, "13.0.88")):
        folder.mkdir(parents=True)
        fake_ptxas(folder, version)
    monkeypatch.delenv("MM2C_PTXAS", raising=False)
    monkeypatch.setattr("sys.path", [str(tmp_path / "site")])
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(shutil, "which", lambda _: str(first / "ptxas"))
    toolchain.find_ptxas.cache_clear()
    assert toolchain.find_ptxas().path == first / "ptxas"

    fake_ptxas(first, "12.4.1")
    candidates = list(toolchain._ptxas_candidates())
    assert candidates[0] == first / "ptxas"
    assert candidates[-1] == wheel / "ptxas"
    toolchain.find_ptxas.cache_clear()


def test_a_missing_triton_is_said() -> None:
    if toolchain._package_folder("triton") is not None:
        pytest.skip("this environment has triton")
    toolchain.versions.cache_clear()
    with pytest.raises(toolchain.ToolMissing, match=r"triton is not in this environment"):
        toolchain.versions()
    with pytest.raises(toolchain.ToolMissing, match=r"nvdisasm comes with triton"):
        toolchain.find_nvdisasm()


def test_the_environments_headers_of_tensorrt_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE", str(tmp_path))
    with pytest.raises(toolchain.ToolMissing, match="TensorRT headers"):
        toolchain.tensorrt_include()
    for name in ("NvInferRuntime.h", "NvInferRuntimePlugin.h"):
        (tmp_path / name).touch()
    assert toolchain.tensorrt_include() == tmp_path


def test_scratch_parameters_are_cut() -> None:
    stripped = assemble.strip_scratch(PTX)
    assert [line.strip().rstrip(",") for line in stripped.splitlines() if ".param ." in line] == [
        ".param .u64 .ptr .global .align 1 twice_param_0",
        ".param .u32 twice_param_1",
    ]
    assert stripped.count("\n)\n") == 1


def test_scratch_parameters_that_are_read_stay() -> None:
    with pytest.raises(assemble.AssemblyError, match=r"twice reads its scratch pointer \(parameter 3\)"):
        assemble.strip_scratch(PTX.replace("[twice_param_1]", "[twice_param_3]"))


def test_usage_is_read() -> None:
    log = """ptxas info    : Function properties for twice
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 42 registers, used 1 barriers, 8 bytes cumulative stack size
"""
    assert assemble.parse_usage(log) == {"registers": 42, "stack": 8, "spills": 16}


def test_a_listing_of_several_kernels_is_told_apart() -> None:
    listing = """\t.headerflags @"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0020*/              @!P0 LDL.64 R2, [R1] ;
        /*0030*/              @UP1 HGMMA.64x8x16.F32.BF16 R2, gdesc[UR4], R2 ;
    """
    assert disassemble.split_listing(listing, [32, 32]) == [{"HGMMA": 1}, {"HGMMA": 1, "LDL": 1}]
    with pytest.raises(disassemble.DisassemblyError, match="0 instructions listed for 16 bytes"):
        disassemble.split_listing(listing, [64, 16])
    with pytest.raises(disassemble.DisassemblyError, match="not a cubin"):
        disassemble.code(b"text")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"ptx_version": "9.4"}, "PTX 9.4"),
        ({"ptx_version": "8.7"}, None),
        ({"target": "sm_90"}, "target sm_90, not sm_90a"),
        ({"spills": 4}, "spills 4 bytes"),
        ({"instructions": {"HGMMA": 8, "LDL": 1, "STL": 2}}, "3 accesses to local memory"),
        ({"shared": 232449}, "shared memory"),
        ({"registers": 255, "num_warps": 16}, "no SM can hold"),
        ({"parameters": 5}, "5 parameters"),
        ({"instructions": {"HMMA": 8}}, "no HGMMA"),
        ({"instructions": {}, "dots": []}, None),
        ({"instructions": {"HMMA": 8}, "dots": [{"m": 16, "n": 64, "k": 128, "type": "bf16"}]}, None),
        ({"instructions": {}, "dots": [{"m": 16, "n": 64, "k": 128, "type": "bf16"}]}, "no HMMA"),
        ({"instructions": {}, "dots": [{"m": 16, "n": 64, "k": 128, "type": "f32"}]}, None),
        ({"sm": 80, "target": "sm_80", "shared": 101377}, "shared memory"),
    ],
)
def test_gates(changes: dict[str, Any], fault: str | None) -> None:
    found = gates.failures(record(**changes))
    assert found == [] if fault is None else any(fault in line for line in found), found


def test_occupancy_follows_the_scarcest_resource() -> None:
    light = {"num_warps": 4, "registers": 32, "shared": 0}
    assert gates.occupancy(record(**light)) == 16  # 64 warps
    assert gates.occupancy(record(**{**light, "registers": 128})) == 4
    assert gates.occupancy(record(**{**light, "shared": 115712})) == 2
    assert gates.occupancy(record(**{**light, "num_warps": 1})) == 32  # blocks


def test_shipped_tile_tables_are_sound_and_of_every_architecture() -> None:
    tables = {sm: catalogue.load_tiles(sm) for sm in catalogue.SMS}
    assert all(tables.values())
    assert len({frozenset(table) for table in tables.values()}) == 1  # the same ops everywhere


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"sm_90\.json"),
        ({"op": []}, "non-empty list"),
        ({"op": [{"BM": 16}]}, "max_tokens"),
        ({"op": [{"max_tokens": 16, "BM": "16"}]}, r"only whole numbers \(wrong: \['BM'\]\)"),
        ({"op": [{"max_tokens": 16}, {"max_tokens": 16}]}, "must rise"),
    ],
)
def test_a_bad_tile_table_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "sm_90.json").write_text(text)
    with pytest.raises(CatalogueError, match=message):
        catalogue.load_tiles(90, tmp_path)


def test_parameters_get_their_types() -> None:
    variant = Variant("k", "k.a", {"BM": 16, "PDL": True}, {"w": "*u8"}, num_warps=8)
    assert variant.parameters({"x": "*bf16", "w": "{w}", "T": "i32"}) == {
        "x": "*bf16",
        "w": "*u8",
        "T": "i32",
    }
    assert variant.table_constants() == {"BM": 16, "PDL": 1, "num_warps": 8, "num_stages": 1}
    assert catalogue.letters({"x": "*bf16", "n": "i64", "T": "i32", "eps": "fp32"}) == "plif"
    with pytest.raises(CatalogueError, match=r"no type given for \{kv\}"):
        variant.parameters({"k": "*{kv}"})
    with pytest.raises(CatalogueError, match="parameter x: type i1"):
        catalogue.letters({"x": "i1"})


def test_kernel_files_are_found_without_importing_them() -> None:
    names = catalogue.kernel_names()
    assert {"fp8_linear", "moe_gate_up", "attention_decode"} <= set(names)
    assert not {"catalogue", "e4m3", "interpreter"} & set(names)


def test_rows_that_select_nothing_are_found() -> None:
    tables = {90: {"moe": [{"max_tokens": 9, "BM": 128, "num_warps": 8}, {"max_tokens": 99, "BM": 16}]}}
    assert gates.rows_without_image([record()], tables) == ["sm_90: row 1 of moe selects no kernel"]
    assert gates.rows_without_image([], tables) == []  # a build without this architecture


def test_generated_sources_compile_and_hold_the_cubins(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    generated, cubins = tmp_path / "generated", tmp_path / "cubins" / "sm_90"
    generated.mkdir()
    cubins.mkdir(parents=True)
    (cubins / "moe_gate_up.bm128.cubin").write_bytes(b"cubin of 16 byte")
    tables = {90: {"moe": [{"max_tokens": 9, "BM": 128, "alternative": True}]}}
    (generated / "cubins.S").write_text(embed.assembly([record()]))
    (generated / "kernel_table.cpp").write_text(embed.table([record()], tables))
    (tmp_path / "main.cpp").write_text(
        """#include "mm2c/kernel_table.h"
#include <cstdio>
int main()
{
    for (int i = 0; i < mm2c::kKernelImageCount; ++i)
    {
        auto const& image = mm2c::kKernelImages[i];
        std::printf("%s %s %d %.*s %s %d %d %s", image.kernel, image.variant, image.sm,
            static_cast<int>(image.cubin_end - image.cubin), reinterpret_cast<char const*>(image.cubin), image.entry,
            image.warps, image.shared, image.types);
        for (int c = 0; c < image.n_constants; ++c)
            std::printf(" %s=%d", image.constants[c].name, image.constants[c].value);
    }
    for (int i = 0; i < mm2c::kTileRowCount; ++i)
    {
        auto const& row = mm2c::kTileRows[i];
        std::printf("|%s %d %d %d %s=%d", row.op, row.sm, row.max_tokens, row.alternative, row.constants[0].name,
            row.constants[0].value);
    }
}
"""
    )
    sources = [tmp_path / "main.cpp", generated / "kernel_table.cpp", generated / "cubins.S"]
    flags = ["-std=c++17", "-Wall", "-Werror", f"-I{PLUGINS / 'include'}", f"-Wa,-I{generated}"]
    subprocess.run(["g++", *flags, *map(str, sources), "-o", str(tmp_path / "main")], check=True)
    printed = subprocess.run([str(tmp_path / "main")], capture_output=True, text=True, check=True).stdout
    assert printed == (
        "moe_gate_up moe_gate_up.bm128 90 cubin of 16 byte moe_gate_up 8 100000 ppi BM=128 num_stages=3 num_warps=8"
        "|moe 90 9 1 BM=128"
    )


def test_an_empty_build_still_generates_sources() -> None:
    assert "kKernelImageCount = 0;" in embed.table([], {})
    assert "kTileRowCount = 0;" in embed.table([], {})
    assert ".incbin" not in embed.assembly([])


def test_unchanged_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    assert embed.write_if_changed(path, "a")
    assert not embed.write_if_changed(path, "a")
    assert embed.write_if_changed(path, "b")
    assert path.read_text() == "b"


def test_the_report_says_what_was_missed(tmp_path: Path) -> None:
    bad = record(name="moe_gate_up.spilling", spills=8)
    (tmp_path / "kernels.json").write_text(json.dumps({"format": 1, "kernels": [record(), bad]}))
    totals = report.write(tmp_path)
    assert totals["variants"] == 2
    assert "sm_90 moe_gate_up.spilling: spills 8 bytes" in totals["missed_gates"]
    written = (tmp_path / "report.md").read_text()
    assert "- sm_90 moe_gate_up.spilling: spills 8 bytes" in written
    assert "| moe_gate_up.bm128 | 8 | 200 | 100000 | 1 | 8 | HGMMA 8 | 16 | 1.0 |" in written
    assert json.loads((tmp_path / "report.json").read_text())["variants_built"][0]["blocks_per_sm"] == 1

    debug = {**bad, "debug": True}
    assert not any("spilling" in line for line in report.summary([debug], {})["missed_gates"])
