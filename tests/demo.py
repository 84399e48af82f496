"""`make demo`: compile the demo checkpoint, serve it under a real Triton, ask it over gRPC and HTTP, shut down.

Everything goes through the commands and the network, as a user's would; nothing of the compiler is imported.
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from openai import OpenAI
from rich.console import Console

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "fixtures" / "tiny-m2"
MM2C = [str(Path(sys.executable).with_name("mm2c"))]
console = Console(highlight=False, width=110)

sys.path.insert(0, str(HERE / "fixtures" / "train_tiny"))
from tools import TOOLS as DEMO_TOOLS  # noqa: E402  the four tools that the checkpoint was trained with

TOOLS = list(DEMO_TOOLS.values())
QUESTION = "Give me a 3 day forecast for Bergen in fahrenheit."
RESULT = '{"city": "Bergen", "temperature": 48, "sky": "rainy"}'
OVER_HTTP = "What is 128 * 47?"
PLAIN = "What is the capital of France?"
DOORS = {"gRPC": "grpc", "HTTP": "http", "OpenAI": "openai"}
SMALL_TALK = "Tell me a joke."


def banner(text: str) -> None:
    console.print(f"\n[bold cyan]── {text}[/]")


def over_grpc(
    url: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> Iterator[dict[str, Any]]:
    """One request on the decoupled model; yields each response's tensors."""
    inputs = []
    fields = {"messages": json.dumps(messages)} | ({"tools": json.dumps(tools)} if tools else {})
    for name, text in fields.items():
        tensor = grpc.InferInput(name, [1], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode()], dtype=object))
        inputs.append(tensor)
    temperature = grpc.InferInput("temperature", [1], "FP32")
    temperature.set_data_from_numpy(np.zeros(1, np.float32))
    stream = grpc.InferInput("stream", [1], "BOOL")
    stream.set_data_from_numpy(np.ones(1, bool))
    inputs += [temperature, stream]
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with grpc.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("minimax_m2", inputs, enable_empty_final_response=True)
        while True:
            result, error = answers.get(timeout=60)
            if error is not None:
                raise SystemExit(f"the request failed: {error}")
            response = result.get_response()
            names = [output.name for output in response.outputs]
            if names:
                yield {
                    name: result.as_numpy(name).reshape(-1)[0] for name in names if result.as_numpy(name).size
                }
            if response.parameters["triton_final_response"].bool_param:
                return


def over_http(
    url: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> Iterator[dict[str, Any]]:
    """The same over HTTP: server-sent events of ``generate_stream``."""
    fields: dict[str, Any] = {"messages": json.dumps(messages), "temperature": 0.0, "stream": True}
    body = json.dumps(fields | ({"tools": json.dumps(tools)} if tools else {})).encode()
    request = urllib.request.Request(f"{url}/v2/models/minimax_m2/generate_stream", body)
    with urllib.request.urlopen(request, timeout=60) as response:
        for line in response:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def show(parts: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Print a stream as it comes (thinking dim, content plain) and gather it."""
    whole: dict[str, Any] = {"reasoning": "", "content": "", "calls": {}, "finish_reason": "", "pieces": 0}
    for part in parts:
        whole["pieces"] += 1
        reasoning, content = _text(part.get("reasoning_output")), _text(part.get("text_output"))
        console.print(reasoning, end="", style="dim italic", markup=False)
        if content and not whole["content"]:
            console.print()
        console.print(content, end="", markup=False)
        whole["reasoning"] += reasoning
        whole["content"] += content
        for delta in json.loads(_text(part.get("tool_calls")) or "[]"):
            call = whole["calls"].setdefault(delta["index"], {"name": "", "arguments": ""})
            function = delta.get("function", {})
            call["name"] += function.get("name") or ""
            call["arguments"] += function.get("arguments") or ""
        whole["finish_reason"] = _text(part.get("finish_reason")) or whole["finish_reason"]
    for call in whole["calls"].values():
        console.print(f"\n[bold magenta]{call['name']}[/]({call['arguments']})", end="")
    console.print(f"\n[dim]({whole['finish_reason']}, {whole['pieces']} responses)[/]")
    return whole


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise SystemExit(f"demo failed: {what}")


def ask(endpoints: dict[str, Any]) -> None:
    banner(f"gRPC stream: {QUESTION}")
    history: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
    first = show(over_grpc(endpoints["grpc"], history, TOOLS))
    expect(bool(first["reasoning"].strip()), "no thinking was streamed")
    expect(first["finish_reason"] == "tool_calls" and len(first["calls"]) == 1, "no tool call came back")
    call = first["calls"][0]
    arguments = json.loads(call["arguments"])
    typed = {"city": "Bergen", "unit": "fahrenheit", "days": 3}
    expect(call["name"] == "get_weather" and arguments == typed, f"not the call that was asked for: {call}")
    expect(type(arguments["days"]) is int, "the integer argument is no integer")

    banner(f"gRPC stream: the tool answers {RESULT}")
    history += [
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": first["reasoning"],
            "tool_calls": [
                {"type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
            ],
        },
        {"role": "tool", "content": RESULT},
    ]
    second = show(over_grpc(endpoints["grpc"], history, TOOLS))
    answered = "Bergen" in second["content"] and "48" in second["content"]
    expect(second["finish_reason"] == "stop" and answered, "no answer after the tool's result")

    banner(f"HTTP generate_stream: {OVER_HTTP}")
    third = show(over_http(endpoints["http"], [{"role": "user", "content": OVER_HTTP}], TOOLS))
    expect(third["finish_reason"] == "tool_calls", "no tool call over HTTP")
    called = third["calls"][0]
    expect(json.loads(called["arguments"]) == {"expression": "128 * 47"}, f"an odd call: {called}")

    banner(f"HTTP generate_stream, no tools: {PLAIN}")
    fourth = show(over_http(endpoints["http"], [{"role": "user", "content": PLAIN}], None))
    expect(fourth["finish_reason"] == "stop" and "Paris" in fourth["content"], "no plain answer over HTTP")


def over_openai(url: str) -> None:
    """The official client: a call that the model would not make by itself, demanded of it, sampled hot."""
    client = OpenAI(base_url=url, api_key="none")
    banner(f"openai client, tool_choice=required, temperature 1.5: {SMALL_TALK}")
    offered: list[Any] = TOOLS
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": SMALL_TALK}],
        tools=offered,
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=400,
        temperature=1.5,
        seed=3,
    )
    choice = answer.choices[0]
    for call in choice.message.tool_calls or []:
        assert call.type == "function"
        console.print(f"[bold magenta]{call.function.name}[/]({call.function.arguments})")
        expect(call.function.name in DEMO_TOOLS, f"no such tool: {call.function.name}")
        schema = DEMO_TOOLS[call.function.name]["function"]["parameters"]
        arguments = json.loads(call.function.arguments)
        expect(set(schema["required"]) <= set(arguments), f"a parameter is missing: {call}")
    usage = answer.usage
    assert usage is not None
    console.print(
        f"[dim]({choice.finish_reason}, {usage.prompt_tokens} + {usage.completion_tokens} tokens)[/]"
    )
    expect(choice.finish_reason == "tool_calls", "no tool call from the OpenAI front")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bundle", type=Path, default=Path("out/tiny-m2-tp4"))
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    options = parser.parse_args()
    started = time.monotonic()
    build = ["build", str(options.checkpoint), "--tp", "4", "--fp8", "-o", str(options.bundle), "--force"]
    banner("mm2c " + " ".join(build))
    subprocess.run([*MM2C, *build], check=True)
    banner(f"mm2c serve {options.bundle}")
    command = [
        *MM2C,
        "serve",
        str(options.bundle),
        "--json",
        "--http-port",
        "0",
        "--grpc-port",
        "0",
        "--metrics-port",
        "0",
        "--openai-port",
        "0",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        expect(bool(line), "the server did not start")
        endpoints = json.loads(line)
        ready = "  ".join(f"{name} {endpoints[key]}" for name, key in DOORS.items())
        console.print(f"READY  {ready}")
        ask(endpoints)
        over_openai(endpoints["openai"])
    finally:
        server.send_signal(signal.SIGINT)
        code = server.wait(30)
    expect(code == 0, f"the server left with status {code}")
    banner(f"done in {time.monotonic() - started:.0f} s; server stopped")


if __name__ == "__main__":
    main()
