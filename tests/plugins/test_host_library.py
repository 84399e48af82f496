"""Opening a plugin library: what it is, what is refused, and the same from inside a bundle."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_cases import CASES

from mm2c_plugins import host
from mm2c_plugins.host import Library, PluginError
from mm2c_plugins.host.library import NAME
from mm2c_plugins.host.native import NAME as HOST_NAME

PACKAGE = Path(host.__file__).parent


def test_identity(library: Library) -> None:
    assert library.abi == 1
    assert re.fullmatch(r"0\.1\.0\+[0-9a-f]{12}", library.version)
    assert set(library.creators) == set(CASES)
    assert set(library.namespaces.values()) == {("mm2c", "1")}


@pytest.mark.parametrize("name", CASES)
def test_fields_are_typed(library: Library, name: str) -> None:
    announced = {field.name: field.type for field in library.creators[name]}
    for attribute, value in CASES[name].attributes.items():
        assert announced[attribute] == ("float32" if isinstance(value, float) else "int32")
    assert all(field.length == 1 and field.data is None for field in library.creators[name])


def test_a_library_may_be_named_by_folder_or_by_file(plugin_folder: Path, library: Library) -> None:
    assert Library(plugin_folder / NAME).path == Library(plugin_folder).path == library.path


def test_expected_version(plugin_folder: Path, library: Library) -> None:
    assert Library(plugin_folder, expect_version=library.version).version == library.version
    with pytest.raises(
        PluginError, match=rf"version {re.escape(library.version)}, but 0\.1\.0\+nothex is asked for"
    ):
        Library(plugin_folder, expect_version="0.1.0+nothex")


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=f"no plugin library at {re.escape(str(tmp_path / NAME))}"):
        Library(tmp_path / NAME)


def test_a_missing_host_is_named(tmp_path: Path, plugin_folder: Path) -> None:
    shutil.copy(plugin_folder / NAME, tmp_path)
    with pytest.raises(PluginError, match=f"cannot load the plugin host .*{HOST_NAME}"):
        Library(tmp_path)


def test_what_is_no_library_is_refused(tmp_path: Path, plugin_folder: Path) -> None:
    shutil.copy(plugin_folder / HOST_NAME, tmp_path)
    (tmp_path / NAME).write_text("not a library")
    with pytest.raises(PluginError, match=r"cannot open the plugin library .*(ELF|short|header)"):
        Library(tmp_path)
    shutil.copy(plugin_folder / HOST_NAME, tmp_path / NAME)
    with pytest.raises(PluginError, match="exports no getCreators"):
        Library(tmp_path)


FOREIGN = """
#include <cstdint>
#define API extern "C" __attribute__((visibility("default")))
API void* const* getCreators(int32_t& count) { count = 0; return nullptr; }
#ifdef ABI
API int mm2c_plugins_abi() { return ABI; }
API char const* mm2c_plugins_version() { return "9"; }
API char const* mm2c_plugins_last_error() { return ""; }
API void mm2c_plugins_set_launcher(void*, void*) {}
API int mm2c_plugins_set_device(int, int, int) { return 0; }
API void mm2c_plugins_set_pdl(int) {}
API unsigned long mm2c_plugins_kernels(int, char*, unsigned long) { return 0; }
#endif
"""


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "no plugin library of mm2c: it lacks mm2c_plugins_"),
        (["-DABI=2"], "has interface 2, this binding 1"),
    ],
)
def test_other_peoples_libraries_are_refused(
    tmp_path: Path, plugin_folder: Path, flags: list[str], complaint: str
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is needed to make a library of another kind")
    (tmp_path / "foreign.cpp").write_text(FOREIGN)
    built = ["g++", "-shared", "-fPIC", *flags, "-o", str(tmp_path / NAME), str(tmp_path / "foreign.cpp")]
    subprocess.run(built, check=True)
    shutil.copy(plugin_folder / HOST_NAME, tmp_path)
    with pytest.raises(PluginError, match=complaint):
        Library(tmp_path)


def test_kernels_are_listed_by_architecture(library: Library) -> None:
    every = library.kernels()
    if not every:
        pytest.skip("the library was built without kernels")
    assert sorted(library.kernels(90), key=str) == sorted((k for k in every if k["sm"] == 90), key=str)
    for kernel in every:
        assert kernel["block"] in (32, 64, 128, 256, 512, 1024)
        assert re.fullmatch("[pilf]+", kernel["types"])
        assert kernel["shared"] <= (232448 if kernel["sm"] in (90, 100) else 101376)
    assert len({(k["sm"], k["variant"]) for k in every}) == len(every)


IN_A_BUNDLE = """
import sys
from pathlib import Path
bundle = Path(sys.argv[1])
sys.path.insert(0, str(bundle / "runtime"))
from mm2c_plugins.host import Library, TensorArg
library = Library(bundle / "plugins", expect_version=sys.argv[2])
library.pretend_device(90)
launches = []
library.set_launcher(launches.append)
plugin = library.restore("M2AddRmsNorm", library.create("M2AddRmsNorm", {"eps": 1e-6}).serialize())
x, weight, y = TensorArg("bf16", (2, 64), 4096), TensorArg("bf16", (64,), 8192), TensorArg("bf16", (2, 64), 12288)
plugin.attach().enqueue([x, x, weight], [y, y])
assert [launch.kernel for launch in launches] == ["add_rms_norm"], launches
taken = {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
assert taken <= {"mm2c_plugins", "__main__"}, taken
"""


def test_inside_a_bundle(tmp_path: Path, plugin_folder: Path, library: Library) -> None:
    """The libraries beside each other and the host's Python files alone, in an interpreter without packages."""
    if not library.kernels(90):
        pytest.skip("the library was built without kernels for sm_90")
    (tmp_path / "plugins").mkdir()
    for name in (NAME, HOST_NAME):
        shutil.copy(plugin_folder / name, tmp_path / "plugins")
    into = tmp_path / "runtime" / "mm2c_plugins" / "host"
    into.mkdir(parents=True)
    for path in PACKAGE.glob("*.py"):
        shutil.copy(path, into)
    command = [sys.executable, "-I", "-S", "-c", IN_A_BUNDLE, str(tmp_path), library.version]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
