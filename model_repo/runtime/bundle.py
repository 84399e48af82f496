"""A bundle in this process: ``Bundle.load(folder).generate(messages, tools=…)``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args, overload

from tokenizers import Tokenizer

from mm2c_runtime.chat import ChatTemplate, will_reason
from mm2c_runtime.checksums import check_contents, check_sizes
from mm2c_runtime.completion import Completion, Deltas, Stream
from mm2c_runtime.detokenizer import TokenBytes
from mm2c_runtime.engine import Engine
from mm2c_runtime.errors import BundleError
from mm2c_runtime.executors.load import load_executor
from mm2c_runtime.executors.provider import ProviderName, asked_provider, provider_lowering
from mm2c_runtime.generation import Preparer
from mm2c_runtime.generation_defaults import GenerationDefaults
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.manifest_file import read_manifest
from mm2c_runtime.memory import asked_tokens, check_memory, kv_budget
from mm2c_runtime.page_pool import pool_for
from mm2c_runtime.requests import parse_request
from mm2c_runtime.scheduling.groups import Groups
from mm2c_runtime.selfcheck import checked

Checksums = Literal["none", "sizes", "full"]


class Bundle:
    """A loaded bundle with its engine running. Use it as a context manager, or ``close`` it.

    ``generate`` may be called from several threads; their requests are batched.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        lowering: str,
        engine: Engine,
        *,
        kv_tokens: int,
        provider: ProviderName = "cpu",
    ) -> None:
        self.folder, self.manifest, self.lowering, self.engine = folder, manifest, lowering, engine
        self.kv_tokens, self.provider = kv_tokens, provider
        self._ids = itertools.count()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        lowering: str | None = None,
        threads: int | None = None,
        kv_tokens: int | None = None,
        verify_checksums: Checksums = "full",
        ops: str = "",
        self_check: str | None = None,
        provider: str | None = None,
    ) -> Bundle:
        """Checks the bundle and loads it.

        ``provider``: "cpu", or "cuda" for a GPU for each rank (default ``$MM2C_PROVIDER``, else "cpu"); ``lowering``:
        "fast" or "portable" (default the first on the CPU, the second, its only one, on cuda); ``threads``: CPU
        threads of the model; all three are for ONNX Runtime. ``kv_tokens``: how many tokens, prompts and answers, all
        running requests may hold together, in equal parts for the attention groups (default ``$MM2C_KV_TOKENS``, else
        every row full, or what a GPU has room for), a request waits until its prompt and max_tokens fit;
        ``verify_checksums``: "full" hashes every file that changed since it was last hashed, "sizes" only compares
        sizes. ``ops`` ("module:class") replaces the kernels of the cuda engine and runs it on the CPU, for tests.
        ``self_check``: "always", "first" or "never" (default ``$MM2C_SELF_CHECK``, else the first start on a GPU)
        compares the engine with the bundle's golden vectors before anything is served. Raises BundleError naming what
        is wrong, where, and the remedy: also where weights and KV cache do not fit into the memory that is
        available."""
        folder = Path(folder)
        _check_arguments(threads, verify_checksums)
        manifest = read_manifest(folder)
        runs_on = asked_provider(provider, engine=manifest.engine)
        lowering = provider_lowering(runs_on, lowering)
        _check_servable(folder, manifest, lowering)
        groups = manifest.mapping.attention_dp
        asked = asked_tokens(kv_tokens, manifest.limits, groups=groups)
        budget = kv_budget(kv_tokens, manifest.limits, groups=groups)
        if manifest.engine == "onnxruntime" and runs_on == "cpu":
            check_memory(folder, manifest, lowering, groups * budget)
        if verify_checksums == "full":
            check_contents(folder, manifest.files)
        elif verify_checksums == "sizes":
            check_sizes(folder, manifest.files)
        text = _text_side(folder, manifest)
        executor = load_executor(
            folder, manifest, lowering=lowering, threads=threads, kv_tokens=asked, ops=ops, provider=runs_on
        )
        gpu = runs_on == "cuda" or (manifest.engine != "onnxruntime" and not ops)
        executor = checked(folder, manifest, executor, self_check, gpu=gpu)
        limits = executor.limits
        budget = min(budget, limits.max_rows * limits.context)  # which a GPU's memory may have lowered
        pools = [pool_for(limits, executor.kv, budget) for _ in range(executor.kv.groups)]
        schedulers = Groups.of(pools, prefill_chunk=limits.prefill_chunk)
        preparer = text(pools[0].budget)
        engine = Engine(executor, schedulers, preparer, TokenBytes(preparer.tokenizer))
        runs = lowering if manifest.engine == "onnxruntime" else manifest.engine
        tokens = sum(pool.budget for pool in pools)
        return cls(folder, manifest, runs, engine, kv_tokens=tokens, provider=runs_on)

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
    ) -> Deltas: ...

    def generate(
        self,
        messages: Sequence[dict[str, Any]] | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        prompt: str | None = None,
        stream: bool = False,
        **sampling: Any,
    ) -> Completion | Deltas:
        """Answers a conversation (OpenAI messages and tools) or continues a raw ``prompt``.

        ``sampling``: any request option (max_tokens, temperature, top_p, top_k, seed, stop, tool_choice,
        response_format, …); what is not given comes from the bundle's generation config. With ``stream`` an
        iterator of the deltas as they come; closing it or letting go of it before its end cancels the request.
        Raises RequestError.
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
        """What the engine process tells its clients: model, limits, mapping, engine, lowering, and ONNX Runtime's
        provider."""
        manifest = self.manifest
        runs_on = {"provider": self.provider} if manifest.engine == "onnxruntime" else {}
        return {
            "model": manifest.model.model_dump(),
            "limits": manifest.limits.model_dump(),
            "mapping": manifest.mapping.model_dump(),
            "engine": manifest.engine,
            "lowering": self.lowering,
            **runs_on,
            "kv_tokens": self.kv_tokens,
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


def _check_arguments(threads: Any, verify_checksums: Any) -> None:
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if threads is not None and (not whole or threads < 1):
        raise BundleError(
            f"threads is {threads!r}, not a whole number of at least 1",
            where="threads",
            remedy="leave it out for as many as there are CPU cores",
        )
    if verify_checksums not in get_args(Checksums):
        raise BundleError(
            f"verify_checksums is {verify_checksums!r}, not one of {', '.join(get_args(Checksums))}",
            where="verify_checksums",
            remedy="leave it out to have every file compared",
        )


def _check_servable(folder: Path, manifest: Manifest, lowering: str) -> None:
    if manifest.checkpoint is None:
        raise BundleError(
            "the bundle was built from config.json alone and has no weights",
            where=str(folder),
            remedy="build it without --config-only",
        )
    if manifest.engine != "onnxruntime":
        if (manifest.cuda if manifest.engine == "cuda" else manifest.tensorrt) is None:
            raise BundleError(
                f"the bundle is for the engine {manifest.engine} and names no programs of it",
                where=str(folder / "manifest.json"),
                remedy="build the bundle again with `mm2c build … --force`",
            )
        if lowering != "fast":
            raise BundleError(
                f"the bundle is for the engine {manifest.engine} and has no lowering {lowering!r}",
                where=str(folder),
                remedy="leave the lowering out",
            )
    elif lowering not in manifest.lowerings:
        raise BundleError(
            f"the bundle has no lowering {lowering!r}; it has {', '.join(sorted(manifest.lowerings))}",
            where=str(folder),
            remedy="choose one of these",
        )


def _text_side(folder: Path, manifest: Manifest) -> Callable[[int], Preparer]:
    """All that is read of tokenizer, template and defaults; what is missing is the KV budget in tokens."""
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise BundleError(
            f"the tokenizer cannot be read: {error}",
            where=str(path),
            remedy="build the bundle again with `mm2c build … --force`",
        ) from None
    template = ChatTemplate.from_bundle(folder)
    defaults = GenerationDefaults.load(
        folder / "generation_config.json", eos=manifest.model.eos, vocab=manifest.model.vocab
    )
    return lambda kv_tokens: Preparer(
        tokenizer,
        template,
        defaults,
        context=manifest.limits.context,
        kv_tokens=kv_tokens,
        vocab=manifest.model.vocab,
        will_reason=will_reason,
    )
