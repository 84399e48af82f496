"""The README's promises: every command, flag, target and link that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import typer
from typer.core import TyperGroup

from mm2c.cli.main import app

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FLAG = re.compile(r"(?<![\w-])(--[a-z][\w-]*|-[a-z])(?![\w-])")
OTHERS = ("pip ", "tritonserver ", "curl ", "make ", "docker ", "python ")  # commands with flags of their own


def _options() -> dict[str, set[str]]:
    """Flags by verb."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return {
        verb: {
            flag
            for parameter in command.params
            for flag in (*parameter.opts, *parameter.secondary_opts)
            if flag.startswith("-")
        }
        | {"--help", "-h"}
        for verb, command in group.commands.items()
    }


def _code(text: str) -> list[str]:
    """Code spans, and code blocks line by line with their continuation lines and without comments."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [re.sub(r"\s#\s.*", "", line) for line in lines] + spans


def _without_foreign_flags(text: str) -> str:
    """The README without the first column of the table that translates vLLM's flags."""
    head, _, rest = text.partition("### From vLLM's flags")
    assert rest, "the README has a table of vLLM's flags"
    table, _, tail = rest.partition("\n## ")
    return head + "\n".join(re.sub(r"^\|[^|]*\|", "|", line) for line in table.splitlines()) + "\n## " + tail


def test_no_placeholder_is_left() -> None:
    assert re.findall(r"@@\w*@@", README) == []


def test_every_relative_link_leads_somewhere() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", README, flags=re.M)
    }
    dead = []
    for path, anchor in re.findall(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)]*))?\)", README):
        if (path and not (ROOT / path).exists()) or (not path and anchor not in headings):
            dead.append(f"{path}#{anchor}")
    assert dead == []


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    named = set()
    for code in _code(README):
        if code.startswith("make "):
            words = re.sub(r'\w+="[^"]*"|\w+=\S+', "", code).split()[1:]
            named |= {word for word in words if re.fullmatch(r"[a-z][\w-]*", word)}
    assert {"demo", "test"} <= named
    assert named <= targets


def test_every_verb_and_flag_exists() -> None:
    options = _options()
    everywhere = set().union(*options.values()) | {"--version"}
    unknown, seen = [], set()
    for code in _code(_without_foreign_flags(README)):
        command = re.search(r"\bmm2c ([a-z]+)\b", code)
        if command:
            verb, known = command[1], options.get(command[1])
            if known is None:
                unknown.append(f"mm2c {verb}")
                continue
            flags = FLAG.findall(code[command.end() :])
        elif code.startswith(OTHERS) or not code.startswith("-"):
            continue
        else:
            known, flags = everywhere, FLAG.findall(code)
        seen |= set(flags)
        unknown += [f"{flag} in: {code}" for flag in flags if flag not in known]
    assert unknown == []
    assert {"--tp", "--fp8", "--config-only", "--against"} <= seen


def test_every_option_of_build_is_explained() -> None:
    spoken = set(FLAG.findall(" ".join(_code(README))))
    assert _options()["build"] - {"--help", "-h", "--json", "--output"} <= spoken
