"""Checkpoints for the tests. ``tests/fixtures`` is importable: ``from random_checkpoint import ...``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# An example's time says what else the machine does, not whether it is right.
settings.register_profile("mm2c", deadline=None, print_blob=True)
settings.load_profile("mm2c")

# Children inherit what nohup or a shell's "&" had ignored, and the tests send them these to see them end.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

# What is not marked gpu is the same on every machine: `--engine auto` must not find one.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# Of the kernel environment, which has triton: `make test` runs them with its Python.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["kernels"]

FIXTURES = Path(__file__).parent / "fixtures"
sys.path.insert(0, str(FIXTURES))


@pytest.fixture(scope="session")
def tiny_m2() -> Path:
    """The trained demo checkpoint."""
    return FIXTURES / "tiny-m2"


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Keyword arguments of write_random_checkpoint -> folder.

    Equal arguments share one folder: do not write to it.
    """
    from random_checkpoint import write_random_checkpoint

    made: dict[str, Path] = {}

    def make(**options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), **options)
        return made[key]

    return make
