"""What the verbs print with: paths stay whole in pipes, Ctrl-C tells no more than is true."""

from __future__ import annotations

import io
from typing import Any

import pytest
import typer
from rich.console import Console
from rich.table import Table

from mm2c.cli import console

LONG = "/data/" + "checkpoint-" * 20 + "[fp8]"


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """stderr as a pipe of 80 columns."""
    text = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=text, width=80, highlight=False))
    return text


def test_a_note_is_one_line(piped: io.StringIO) -> None:
    console.Bars().note(f"log: {LONG}")
    assert piped.getvalue() == f"log: {LONG}\n"


def test_a_stage_is_one_line(piped: io.StringIO) -> None:
    with console.Bars().stage(f"reading {LONG}", total=3) as stage:
        stage.advance()
    assert piped.getvalue() == f"· reading {LONG}\n"


def test_a_title_in_brackets_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    terminal = Console(file=text, width=200, force_terminal=True, highlight=False)
    monkeypatch.setattr(console, "err", terminal)
    with console.Bars().stage("reading [red]", total=1) as stage:
        stage.advance()
    assert "[red]" in text.getvalue()


def test_a_table_is_as_wide_as_it_must_be(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(*(f"column number {n}" for n in range(20)))
    table.add_row(*(LONG for _ in range(2)))
    console.print_table(table)
    printed = capsys.readouterr().out
    assert all(f"column number {n}" in printed for n in range(20))


@pytest.mark.parametrize(
    ("options", "said"),
    [({}, "interrupted\n"), ({"interrupted": "nothing was left"}, "interrupted: nothing was left\n")],
)
def test_an_interrupt(piped: io.StringIO, options: dict[str, Any], said: str) -> None:
    with pytest.raises(typer.Exit) as left, console.user_errors(**options):
        raise KeyboardInterrupt
    assert left.value.exit_code == 130
    assert piped.getvalue() == said
