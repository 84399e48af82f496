"""A bundle in this process: ``Bundle.load(folder).generate(messages, tools=…)``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

from tokenizers import Tokenizer

from mm2c_runtime.checksums import check_contents, check_sizes
from mm2c_runtime.completion import Completion, CompletionDelta, Stream
from mm2c_runtime.detokenizer import TokenBytes
from mm2c_runtime.engine import Engine
from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.base import Executor
from mm2c_runtime.generation import GenerationDefaults, Preparer
from mm2c_runtime.kv import RowPool
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.requests import parse_request
from mm2c_runtime.scheduling.scheduler import Scheduler

Checksums = Literal["none", "sizes", "full"]


class Bundle:
    """A loaded bundle with its engine running. Use it as a context manager, or ``close`` it.

    ``generate`` may be called from several threads; their requests are batched.
    """

    def __init__(self, folder: Path, manifest: Manifest, lowering: str, engine: Engine) -> None:
        self.folder, self.manifest, self.lowering, self.engine = folder, manifest, lowering, engine
        self._ids = itertools.count()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        lowering: str = "fast",
        threads: int | None = None,
        verify_checksums: Checksums = "full",
    ) -> Bundle:
        """Checks the bundle and loads it. ``lowering``: "fast" or "portable"; ``threads``: CPU threads of the
        model; ``verify_checksums``: "full" hashes every file that changed since it was last hashed, "sizes"
        only compares sizes. Raises BundleError naming what is wrong, where, and the remedy."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        _check_servable(folder, manifest, lowering)
        if verify_checksums == "full":
            check_contents(folder, manifest.files)
        elif verify_checksums == "sizes":
            check_sizes(folder, manifest.files)
        preparer, token_bytes = _text_side(folder, manifest)
        executor = _executor(folder, manifest, lowering, threads)
        limits = executor.limits
        scheduler = Scheduler(RowPool(limits.max_rows, limits.context), prefill_chunk=limits.prefill_chunk)
        engine = Engine(executor, scheduler, preparer, token_bytes)
        return cls(folder, manifest, lowering, engine)

    @overload
    def generate(
        self,
        messages: Sequence[dict[str, Any]] | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        prompt: str | None = None,
        stream: Literal[False] = False,
        **sampling: Any,
    ) -> Completion: ...

    @overload
    def generate(
        self,
        messages: Sequence[dict[str, Any]] | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        prompt: str | None = None,
        stream: Literal[True],
        **sampling: Any,
    ) -> Iterator[CompletionDelta]: ...

    def generate(
        self,
        messages: Sequence[dict[str, Any]] | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        prompt: str | None = None,
        stream: bool = False,
        **sampling: Any,
    ) -> Completion | Iterator[CompletionDelta]:
        """Answers a conversation (OpenAI messages and tools) or continues a raw ``prompt``.

        ``sampling``: any request option (max_tokens, temperature, top_p, top_k, seed, stop, …); what is not
        given comes from the bundle's generation config. With ``stream`` the deltas as they come; leaving that
        loop early cancels the request. Raises RequestError.
        """
        request = parse_request(
            {
                "text_input": prompt,
                "messages": None if messages is None else list(messages),
                "tools": None if tools is None else list(tools),
                "stream": stream,
                **sampling,
            }
        )
        request_id = f"local-{next(self._ids)}"
        answer = Stream(cancel=lambda: self.engine.cancel(request_id))
        self.engine.submit(request_id, request, answer.put)
        return answer.deltas() if stream else answer.completion()

    def describe(self) -> dict[str, Any]:
        """What the engine process tells its clients: model, limits, mapping, engine, lowering."""
        manifest = self.manifest
        return {
            "model": manifest.model.model_dump(),
            "limits": manifest.limits.model_dump(),
            "mapping": manifest.mapping.model_dump(),
            "engine": manifest.engine,
            "lowering": self.lowering,
        }

    def close(self) -> None:
        """Ends the engine; requests in flight fail with UNAVAILABLE. Safe to repeat."""
        self.engine.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_servable(folder: Path, manifest: Manifest, lowering: str) -> None:
    if manifest.checkpoint is None:
        raise BundleError(
            "the bundle was built from config.json alone and has no weights",
            where=str(folder),
            remedy="build it without --config-only",
        )
    if manifest.engine != "onnxruntime":
        raise BundleError(
            f"the bundle is for the engine {manifest.engine}, which this runtime does not have",
            where=str(folder),
            remedy="build it with `--engine onnxruntime`",
        )
    if lowering not in manifest.lowerings:
        raise BundleError(
            f"the bundle has no lowering {lowering!r}; it has {', '.join(sorted(manifest.lowerings))}",
            where=str(folder),
            remedy="choose one of these",
        )


def _text_side(folder: Path, manifest: Manifest) -> tuple[Preparer, TokenBytes]:
    from mm2c_runtime.chat import ChatTemplate, will_reason

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise BundleError(
            f"the tokenizer cannot be read: {error}",
            where=str(path),
            remedy="build the bundle again with `mm2c build … --force`",
        ) from None
    preparer = Preparer(
        tokenizer,
        ChatTemplate.from_bundle(folder),
        GenerationDefaults.load(folder / "generation_config.json", eos=manifest.model.eos),
        context=manifest.limits.context,
        vocab=manifest.model.vocab,
        will_reason=will_reason,
    )
    return preparer, TokenBytes(tokenizer)


def _executor(folder: Path, manifest: Manifest, lowering: str, threads: int | None) -> Executor:
    from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor

    return OnnxRuntimeExecutor(folder, manifest, lowering=lowering, threads=threads)
