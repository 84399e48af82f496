"""`mm2c serve`: a bundle under a real Triton Inference Server."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from mm2c.cli.console import Bars, err, interrupt, out, user_errors
from mm2c.cli.gpu import require_gpu

KEPT_LOGS = 20
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, as `mm2c build` wrote it.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="HTTP. 0 picks a free port.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="gRPC. 0 picks a free port.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Metrics. 0 picks a free port.")] = 8002,
    openai_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="An OpenAI-compatible API on this port: /v1/chat/completions, … 0 picks a free one.",
        ),
    ] = None,
    openai_host: Annotated[
        str | None,
        typer.Option(
            help="Address of the OpenAI API, where it is to be another than --host.", show_default=False
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the API keys of the OpenAI API, one a line; or $MM2C_API_KEY, separated by commas. "
            "Without either everybody who reaches the port may use it: your choice beyond localhost. They guard "
            "/v1 of that port alone; Triton's own ports have no keys.",
        ),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that OpenAI requests use; repeatable, the first is the default. "
            "Default: the model's own name.",
        ),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(
            help="tritonserver, or its installation. Default: $MM2C_TRITON, else the nvidia-pytriton wheel, "
            "else /opt/tritonserver."
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            help="The server's log; added to. Default: a file a port under ~/.local/state/mm2c, begun anew."
        ),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            help="What ONNX Runtime runs on, for bundles of that engine: cpu, or cuda with a GPU for each rank (needs "
            "the extra gpu). Default: $MM2C_PROVIDER, else cpu.",
            show_default=False,
        ),
    ] = None,
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of KV cache, all requests of a replica together. Default: the bundle's rows x context.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Where the checkpoint of a bundle of `--weights checkpoint` is now. Default: $MM2C_CHECKPOINT_FOLDER, "
            "else where it was at the build.",
            show_default=False,
        ),
    ] = None,
    drain: Annotated[int, typer.Option(min=0, help="Seconds that running requests get when stopping.")] = 5,
    start_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds until the server must be ready.")
    ] = 1800,
    checksums: Annotated[
        bool, typer.Option("--checksums/--no-checksums", help="Compare every file with the manifest first.")
    ] = True,
    self_check: Annotated[
        str | None,
        typer.Option(
            help="Compare the engine's answers with the golden vectors that `mm2c verify` left in the bundle before "
            "serving: always; first: until they have agreed once on these GPUs and driver; never. "
            "Default: $MM2C_SELF_CHECK, else first on a GPU, never on the CPU.",
            show_default=False,
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Triton's verbose log.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line on stdout when ready.")] = False,
) -> None:
    """Serve a bundle with Triton: gRPC, HTTP `generate_stream`, metrics, and an OpenAI-compatible API. Ctrl-C
    stops it, nothing stays behind.

    A bundle of several replicas (`mm2c build --dp`) runs an engine for each, and a request goes to the least busy.
    The server becomes ready once all of them serve; after that it is ready while at least one does.

    The supervisor restarts what dies. Ask with `mm2c chat`, tritonclient, the openai client or curl.
    """
    with user_errors():
        from mm2c.cli.serve_openai import OpenAIOptions, front_settings
        from mm2c.serve.checkpoint import served_checkpoint
        from mm2c.serve.installation import find_triton
        from mm2c.serve.openai_front import OpenAIFront
        from mm2c.serve.ports import choose_ports
        from mm2c.serve.provider import served_provider
        from mm2c.serve.run_directory import RunDirectory
        from mm2c.serve.self_check import served_self_check
        from mm2c.serve.server import Server, Settings
        from mm2c.serve.supervisor import Supervisor
        from mm2c_runtime.checksums import check_contents, check_sizes
        from mm2c_runtime.manifest_file import read_manifest

        bars = Bars()
        installation = find_triton(triton)
        openai = OpenAIOptions.of(openai_port, openai_host, api_key_file, served_model_name, host)
        ports = choose_ports(
            host, http_port, grpc_port, metrics_port, None if openai is None else openai.address
        )
        log_file = _log_file(log, ports.http)
        with bars.stage("checking the bundle"):
            manifest = read_manifest(bundle)
            (check_contents if checksums else check_sizes)(bundle, manifest.files)
        _refuse_unservable(bundle, manifest)
        mode = served_self_check(bundle, manifest, self_check)
        runs_on = served_provider(bundle, manifest, provider)
        with bars.stage("checking the weights"):
            source = served_checkpoint(manifest, checkpoint)
        _end_on(signal.SIGHUP)
        _end_on(signal.SIGINT)
        settings = Settings(
            bundle.resolve(),
            host,
            ports,
            log_file,
            drain,
            verbose,
            kv_tokens,
            checksums,
            source,
            mode,
            runs_on,
        )
        front_of = None if openai is None else front_settings(openai, settings, manifest)
        run = RunDirectory(installation)
        server = Server(installation, run, settings)
        front = None if front_of is None else OpenAIFront(front_of, run.path)
        supervisor = Supervisor(server, bars.note, start_timeout, front)
        try:
            with bars.stage(f"starting tritonserver of {installation.source} (log: {log_file})") as stage:
                supervisor.start(stage.advance)
            try:
                _announce(settings, server.pid, manifest.model.name, front_of, as_json)
                supervisor.run()
            except KeyboardInterrupt:  # how a server is meant to end: not an error
                _stop(supervisor)
        finally:
            for number in ENDING:  # what is left takes a moment, and must not be left half done
                signal.signal(number, signal.SIG_IGN)
            supervisor.kill()
            run.remove()


def _end_on(number: int) -> None:
    """End as on Ctrl-C. SIGHUP stays ignored where whoever started this process has it so (nohup); SIGINT does
    not: a shell has its background jobs ignore it, and `kill -INT` would do nothing."""

    if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, interrupt)


def _stop(supervisor: Any) -> None:
    """Let requests finish; a second Ctrl-C leaves that at once, and the caller kills what runs."""
    try:
        _say("stopping (running requests may finish; Ctrl-C again to drop them)")
        supervisor.stop()
        _say("stopped")
    except KeyboardInterrupt:
        _say("stopped without waiting")


def _say(text: str) -> None:
    with suppress(OSError):  # the terminal may be what went away
        err.print(text)


def _refuse_unservable(bundle: Path, manifest: Any) -> None:
    from mm2c.errors import UserError

    if manifest.checkpoint is None:
        raise UserError(
            "the bundle was built with --config-only and has no weights",
            where=str(bundle),
            remedy="build it again from a checkpoint",
        )
    require_gpu(bundle, manifest)


def _log_file(named: Path | None, port: int) -> Path:
    """Absolute, and written to already, so that a log that cannot be is known before anything starts."""
    if named is None:
        return _default_log(port)
    log = named.expanduser().absolute()
    try:
        log.open("ab").close()
    except OSError as error:
        from mm2c.errors import UserError

        raise UserError(
            f"the log cannot be written: {(error.strerror or str(error)).lower()}",
            where=f"--log {named}",
            remedy="name a file in a folder that exists and that you may write to, or leave --log out",
        ) from None
    return log


def _default_log(port: int) -> Path:
    """One file a port, written anew at each start; of earlier ones the newest are kept."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "mm2c"
    log = state / f"serve-{port}.log"
    try:
        state.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        log.open("ab").close()
        logs = sorted(state.glob("serve-*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in logs[KEPT_LOGS:]:
            old.unlink(missing_ok=True)
    except OSError:
        descriptor, name = tempfile.mkstemp(prefix=f"mm2c-serve-{port}-", suffix=".log")
        os.close(descriptor)
        return Path(name)
    return log


def _announce(settings: Any, pid: int, model: str, front: Any, as_json: bool) -> None:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    http, grpc, metrics = (
        f"{host}:{p}" for p in (settings.ports.http, settings.ports.grpc, settings.ports.metrics)
    )
    if as_json:
        ready = {
            "event": "ready",
            "model": model,
            "http": f"http://{http}",
            "grpc": grpc,
            "metrics": f"http://{metrics}/metrics",
            **({} if front is None else {"openai": front.url}),
            "pid": os.getpid(),
            "triton_pid": pid,
            "log": str(settings.log),
        }
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        return
    lines = [
        f"[bold green]READY[/] {model}",
        f"  stream   http://{http}/v2/models/minimax_m2/generate_stream",
        f"  once     http://{http}/v2/models/minimax_m2/generate",
        f"  gRPC     {grpc}   (models minimax_m2, minimax_m2_unary, minimax_m2_parse)",
        f"  ready    http://{http}/v2/health/ready",
        f"  metrics  http://{metrics}/metrics",
        *([] if front is None else [f"  OpenAI   {front.url}   ({front.about})"]),
        f"  log      {settings.log}",
        f"ask it     mm2c chat --url {grpc} --message 'Hello!'",
        "stop it    Ctrl-C",
    ]
    out.print("\n".join(lines), soft_wrap=True)
