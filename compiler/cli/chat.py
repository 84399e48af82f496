"""`mm2c chat`: talk to a served bundle, or to one loaded here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from mm2c.cli.chat_input import read_schema, read_tools, sampling_options, tool_results
from mm2c.cli.console import Bars, err, out, print_json, user_errors
from mm2c.errors import UserError
from mm2c_runtime.errors import RequestError

TOOL_ROUNDS = 8  # answers in a row that may call tools with results given beforehand


def chat(
    url: Annotated[str, typer.Option(help="gRPC address of the server.")] = "127.0.0.1:8001",
    local: Annotated[
        Path | None, typer.Option(help="Load this bundle here instead; needs no Triton.", show_default=False)
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this once and leave.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    tools: Annotated[
        Path | None, typer.Option(help="JSON file with a list of tools, in OpenAI's shape.")
    ] = None,
    tool_result: Annotated[
        list[str] | None,
        typer.Option(help="NAME=TEXT: what that tool returns when the model calls it. May be given again."),
    ] = None,
    tool_choice: Annotated[
        str | None,
        typer.Option(help="none, auto, required, or the tool that the model must call first."),
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="File with the JSON schema that the answer must fit.")
    ] = None,
    thinking: Annotated[
        bool, typer.Option("--thinking/--no-thinking", help="Whether the model may think before it answers.")
    ] = True,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. Default: the bundle's.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Default: the bundle's.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 is off. Default: the bundle's.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Default: the bundle's.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="1 is none.")] = None,
    presence_penalty: Annotated[float | None, typer.Option(help="0 is none.")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="0 is none.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop text. May be given again.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --message: one JSON document on stdout.")
    ] = False,
) -> None:
    """Chat with a bundle; thinking, answer and tool calls are shown apart.

    Without --message it is a conversation: /tools FILE, /system TEXT, /reset, /help, /quit.

      mm2c chat -m 'Hello!'

      mm2c chat -m 'Weather in Oslo?' --tools tools.json --tool-result get_weather='{"sky": "clear"}'

      mm2c chat -m 'Roll a die.' --tools tools.json --tool-choice required

      mm2c chat --local m2
    """
    with user_errors():
        from mm2c.serve.conversation import Conversation

        if as_json and message is None:
            raise UserError("--json needs --message", remedy="add --message 'TEXT'")
        results = tool_results(tool_result or [])
        options = sampling_options(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            stop=stop or None,
            tool_choice=tool_choice,
            response_format=None if schema is None else read_schema(schema),
            skip_reasoning=None if thinking else True,
        )
        offered = read_tools(tools) if tools is not None else None
        with _backend(url, local, options) as ask:
            conversation = Conversation(ask, offered)
            if system is not None:
                conversation.messages.append({"role": "system", "content": system})
            if message is None:
                _converse(conversation, results)
            else:
                conversation.say(message)
                _once(conversation, results, as_json)


@contextmanager
def _backend(url: str, local: Path | None, options: dict[str, Any]) -> Iterator[Any]:
    """Yields ask(messages, tools), which streams the parts of an answer."""
    if local is None:
        from mm2c.serve.client import TritonClient

        client = TritonClient(url)
        try:
            yield lambda messages, tools: client.ask(messages, tools, **_options_now(messages, options))
        finally:
            client.close()
    else:
        from mm2c.cli.gpu import require_gpu
        from mm2c_runtime import Bundle
        from mm2c_runtime.manifest_file import read_manifest

        require_gpu(local, read_manifest(local))
        with Bars().stage(f"loading {local}"):
            bundle = Bundle.load(local)
        with bundle:
            yield lambda messages, tools: bundle.generate(
                messages, tools, stream=True, **_options_now(messages, options)
            )


def _options_now(messages: list[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any]:
    """A demanded call is demanded once: behind its result the model may answer."""
    answering = messages[-1]["role"] == "tool"
    return {name: value for name, value in options.items() if not (answering and name == "tool_choice")}


class _Printer:
    """Shows parts as they come: thinking dim, the answer plain, each tool call on a line of its own."""

    def __init__(self) -> None:
        self._section = ""

    def part(self, part: Any) -> None:
        if part.reasoning:
            self._enter("thinking")
            out.print(part.reasoning, end="", style="dim italic", markup=False, soft_wrap=True)
        if part.text:
            # The model puts blank lines between thinking, answer and calls; a section begins without them.
            text = part.text if self._section == "answer" else part.text.lstrip("\n")
            if text:
                self._enter("answer")
                out.print(text, end="", markup=False, soft_wrap=True)

    def end(self, answer: Any) -> None:
        for call in answer.tool_calls:
            self._enter(call["id"])
            function = call["function"]
            out.print(
                f"[bold magenta]tool call[/] [bold]{escape(function['name'])}[/]"
                f"({escape(function['arguments'])})",
                end="",
                soft_wrap=True,
            )
        out.print()
        if answer.finish_reason not in ("stop", "tool_calls"):
            err.print(f"[yellow]ended: {escape(answer.finish_reason)}[/]")

    def _enter(self, section: str) -> None:
        if self._section and section != self._section:
            out.print()
        self._section = section


def _once(conversation: Any, results: dict[str, str], as_json: bool) -> None:
    """Answer, feeding the given tool results back, until an answer calls no tool whose result is known."""
    answers = []
    for _ in range(TOOL_ROUNDS):
        printer = _Printer()
        answer = conversation.answer((lambda part: None) if as_json else printer.part)
        answers.append(answer)
        if not as_json:
            printer.end(answer)
        calls = answer.tool_calls
        if not calls or any(call["function"]["name"] not in results for call in calls):
            break
        for call in calls:
            conversation.give_result(call, results[call["function"]["name"]])
    if as_json:
        print_json({"answers": [asdict(answer) for answer in answers], "messages": conversation.messages})


def _converse(conversation: Any, results: dict[str, str]) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()

    err.print("[dim]/help lists the commands; Ctrl-D leaves, Ctrl-C stops an answer[/]")
    while True:
        try:
            line = out.input("[bold green]you ▸[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            out.print()
            return
        if not line:
            continue
        if line.startswith("/"):
            if not _command(conversation, line):
                return
            continue
        kept = len(conversation.messages)
        conversation.say(line)
        try:
            _answer_with_tools(conversation, results)
        except KeyboardInterrupt:
            del conversation.messages[kept:]
            err.print("\n[yellow]stopped; this turn is forgotten[/]")
        except EOFError:
            return
        except (UserError, RequestError) as error:
            del conversation.messages[kept:]
            err.print(f"[bold red]error:[/] {escape(str(error))}")


def _answer_with_tools(conversation: Any, results: dict[str, str]) -> None:
    """Answer; where tools are called, take their results from the options or from the keyboard and go on."""
    while True:
        printer = _Printer()
        answer = conversation.answer(printer.part)
        printer.end(answer)
        if not answer.tool_calls:
            return
        for call in answer.tool_calls:
            name = call["function"]["name"]
            text = results.get(name)
            if text is None:
                text = out.input(f"[bold magenta]result of {escape(name)} ▸[/] ")
            conversation.give_result(call, text)


def _command(conversation: Any, line: str) -> bool:
    """Carry out a slash command; False to leave."""
    name, _, argument = line[1:].partition(" ")
    argument = argument.strip()
    if name in ("quit", "exit", "q"):
        return False
    if name == "reset":
        conversation.messages.clear()
        err.print("[dim]the conversation begins anew[/]")
    elif name == "tools":
        try:
            conversation.tools = read_tools(Path(argument).expanduser()) if argument else None
        except UserError as error:
            err.print(f"[bold red]error:[/] {escape(str(error))}")
            return True
        names = ", ".join(tool.get("function", {}).get("name", "?") for tool in conversation.tools or [])
        err.print(f"[dim]tools: {escape(names) or 'none'}[/]")
    elif name == "system":
        conversation.messages[:] = [m for m in conversation.messages if m["role"] != "system"]
        if argument:
            conversation.messages.insert(0, {"role": "system", "content": argument})
    else:
        err.print(
            "[dim]/tools FILE  offer tools (no file: none)\n/system TEXT  set the system message\n"
            "/reset  forget everything\n/quit  leave[/]"
        )
    return True
