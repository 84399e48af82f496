"""What a server leaves outside its folder, who may remove it, and a secret that `ps` does not show."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mm2c.serve.installation import Installation
from mm2c.serve.processes import ending
from mm2c.serve.python_environments import environments, remove_environments
from mm2c.serve.run_directory import ENVIRONMENTS, LOCK, PREFIX, RunDirectory, sweep
from mm2c.serve.secret import blank, new_secret, restrictions


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the temporary folder and for /dev/shm."""
    monkeypatch.setattr("mm2c.serve.run_directory._short_temporary_folder", lambda: tmp_path)
    monkeypatch.setattr("mm2c.serve.run_directory.SHARED_MEMORY", tmp_path)
    monkeypatch.setattr("mm2c.serve.python_environments.FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> RunDirectory:
    backend = folder / "triton" / "backends" / "python"
    backend.mkdir(parents=True)
    return RunDirectory(Installation(folder / "triton", folder / "stub", (), "test"))


def _ended() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_only_empty_environments_that_were_made_meanwhile_go(run: RunDirectory, folder: Path) -> None:
    (folder / "python_env_before").mkdir()
    before = environments()
    for name in ("python_env_ours", "python_env_used"):
        (folder / name).mkdir()
    (folder / "python_env_used" / "file").touch()
    run.remember_environments(environments() - before)
    run.remove()
    assert environments() == {"python_env_before", "python_env_used"}


def test_only_such_folders_are_removed(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "python_env_x").mkdir()
    remove_environments(["other", "python_env_x/../other", "python_env_gone"])
    assert (folder / "other").is_dir()


def test_sweep_removes_the_environments_of_a_killed_supervisor(folder: Path) -> None:
    left = folder / f"{PREFIX}{_ended()}-abc"
    left.mkdir()
    (folder / "python_env_left").mkdir()
    (left / ENVIRONMENTS).write_text("python_env_left\n")
    sweep()
    assert not left.exists()
    assert not (folder / "python_env_left").exists()


def test_sweep_leaves_a_locked_folder_whatever_its_process_id(folder: Path) -> None:
    """Another container may share the temporary folder, and not the process ids."""
    other = folder / f"{PREFIX}{_ended()}-abc"
    other.mkdir()
    with (other / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep()
        assert other.is_dir()
    sweep()
    assert not other.exists()


def test_sweep_does_not_follow_links(folder: Path) -> None:
    mine = folder / "mine"
    mine.mkdir()
    (mine / ENVIRONMENTS).write_text("python_env_left\n")
    (folder / "python_env_left").mkdir()
    (folder / f"{PREFIX}{_ended()}-abc").symlink_to(mine)
    sweep()
    assert mine.is_dir()
    assert (folder / "python_env_left").is_dir()


def test_the_secret_disappears_from_the_command_line() -> None:
    secret = new_secret()
    assert len(secret) >= 32
    assert secret != new_secret()
    sleeper = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    with subprocess.Popen([*sleeper, *restrictions(secret)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        command = Path(f"/proc/{child.pid}/cmdline")
        assert secret.encode() in command.read_bytes()
        assert blank(child.pid, secret)
        assert secret.encode() not in command.read_bytes()
        assert b"--grpc-restricted-protocol=model-repository," in command.read_bytes()
        time.sleep(0.05)
        assert child.poll() is None
        child.kill()
    assert not blank(child.pid, secret)


@pytest.mark.parametrize(
    ("status", "said"), [(1, "status 1"), (-11, "signal 11 (SIGSEGV)"), (-99, "signal 99")]
)
def test_an_ending_is_named(status: int, said: str) -> None:
    assert ending(status) == said
