"""The `mm2c` command: one verb a file."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

app = typer.Typer(
    name="mm2c",
    help=(
        "Ahead-of-time compiler for the MiniMax-M2 family.\n\n"
        "A first session:\n\n"
        "  mm2c plan m2.7 --gpu h200                                how many GPUs, which layout\n\n"
        "  mm2c build MiniMaxAI/MiniMax-M2.7 --tp 4 --fp8 -o m2     compile\n\n"
        "  mm2c verify m2 --against MiniMaxAI/MiniMax-M2.7          prove the numbers\n\n"
        "  mm2c serve m2                                            Triton on :8000 / :8001\n\n"
        "  mm2c chat --message 'Hello!'                             ask it"
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        from mm2c.version import __version__

        typer.echo(f"mm2c {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    return


def _register() -> None:
    from mm2c.cli.build import build
    from mm2c.cli.chat import chat
    from mm2c.cli.inspect import inspect
    from mm2c.cli.plan import plan
    from mm2c.cli.serve import serve
    from mm2c.cli.verify import verify

    for verb in (plan, build, inspect, verify, serve, chat):
        app.command(no_args_is_help=False)(verb)


_register()


def main() -> None:
    try:
        app()
    except KeyboardInterrupt:  # before a verb has begun, or behind it
        from mm2c.cli.console import INTERRUPTED

        sys.exit(INTERRUPTED)
