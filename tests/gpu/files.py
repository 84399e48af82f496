"""``make gpu-files``: what the GPU proof needs besides the library, made on a machine with the whole compiler.

    python tests/gpu/files.py            writes plugins/build/gpu/

The demo checkpoint's bundles for the cuda engine, the CPU engine's answers to compare with, and the program of one
rank of M2.7 at tp 4 (no weights: the proof makes random ones).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from environment import BUILD, ROOT

FIXTURES = ROOT / "tests" / "fixtures"
FILES = BUILD / "gpu"
CONTEXT = 16384  # tokens of a row in the slice
COUNT = 48  # tokens of an answer
QUESTIONS = [
    "What is the capital of France?",
    "What is the weather in Oslo?",
    "Tell me the time in Tokyo.",
    "Hello!",
    "Add 17 and 25.",
    "Who are you?",
    "Count from one to five.",
    "Translate 'good morning' into French.",
]


def build(output: Path, *options: str, source: Path) -> None:
    from mm2c.pipeline import BuildRequest, build_bundle

    keys = dict(option.split("=", 1) for option in options)
    build_bundle(
        BuildRequest(
            source=str(source), output=output, force=True, engine=keys.get("engine", "cuda"),
            tp=int(keys.get("tp", "1")), kv_dtype=keys.get("kv"),
            context=int(keys.get("context", "4096")),
        )
    )  # fmt: skip


def golden(bundle: Path) -> dict[str, object]:
    """Prompts as token ids and the CPU engine's greedy answers, one request at a time."""
    from mm2c_runtime.executors.onnxruntime import OnnxRuntimeExecutor
    from mm2c_runtime.kv import RowPool
    from mm2c_runtime.manifest_file import read_manifest
    from mm2c_runtime.scheduling.scheduler import Scheduler
    from mm2c_runtime.scheduling.sequence import Sequence
    from mm2c_runtime.step import SamplingParams

    prompts = [_ids(bundle, question) for question in QUESTIONS]
    executor = OnnxRuntimeExecutor(bundle, read_manifest(bundle), lowering="portable")
    limits = executor.limits
    tokens = []
    for prompt in prompts:
        scheduler = Scheduler(RowPool(1, limits.context), prefill_chunk=limits.prefill_chunk)
        request = Sequence("golden", prompt, COUNT, sampling=SamplingParams(temperature=0.0))
        scheduler.add(request)
        while (batch := scheduler.next_batch()) is not None:
            scheduler.apply(executor.step(batch))
        tokens.append(request.generated)
    executor.close()
    return {"count": COUNT, "prompts": prompts, "tokens": tokens}


def _ids(bundle: Path, question: str) -> list[int]:
    from tokenizers import Tokenizer

    from mm2c_runtime.chat import ChatTemplate

    text = ChatTemplate.from_bundle(bundle).render([{"role": "user", "content": question}], None)
    encoded = Tokenizer.from_file(str(bundle / "tokenizer.json")).encode(text, add_special_tokens=False)
    return list(encoded.ids)


def write_m2_program(config: Path, stage: Path) -> None:
    """``stage``/rank0/cuda.json: rank 0 of four of the model that config.json tells of, as a build writes it."""
    from mm2c.checkpoint import assumed_formats, read_config, recipes_for_config
    from mm2c.config import BuildOptions, Mapping
    from mm2c.engine import cuda
    from mm2c.engine.plugin_library import find_library
    from mm2c.lower.cuda import lower_cuda
    from mm2c.passes.shard import shard
    from mm2c.trace import trace

    parsed = read_config(config)
    formats = assumed_formats(parsed.model, parsed.quant)
    options = BuildOptions(
        mapping=Mapping(tp=4), engine="cuda", context=CONTEXT, max_rows=256, kv_dtype="bf16"
    )
    recipes = recipes_for_config(parsed.model, formats, tied=parsed.tied, context=CONTEXT)
    whole = trace(parsed.model, formats, options, recipes, activation="bf16")
    lowered = lower_cuda(shard(whole, parsed.model, options.mapping.at(0)), cuda.kv_type(options))
    cuda.build(lowered, stage, rank=0, config=parsed.model, options=options, library=find_library())


def main() -> int:
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    from bench_build import full_config

    tiny = FIXTURES / "tiny-m2"
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        build(place / "cpu", "engine=onnxruntime", source=tiny)
        answers = golden(place / "cpu")
        build(place / "tiny-bf16", source=tiny)
        build(place / "tiny-fp8-kv", "kv=fp8", source=tiny)
        build(place / "tiny-tp2", "tp=2", source=tiny)
        write_m2_program(full_config(place), place)
        shutil.rmtree(FILES, ignore_errors=True)
        FILES.mkdir(parents=True)
        for name in ("tiny-bf16", "tiny-fp8-kv", "tiny-tp2"):
            left_out = shutil.ignore_patterns("model_repository", "*.onnx", "plugins", "runtime")
            shutil.copytree(place / name, FILES / name, ignore=left_out)
            (FILES / name / "plugins").mkdir()
            for library in ("libmm2c_plugins.so", "libmm2c_host.so"):  # once is enough: they are large
                (FILES / name / "plugins" / library).symlink_to(Path("..", "..", "..", library))
        (FILES / "m2-tp4").mkdir()
        shutil.copy(place / "rank0" / "cuda.json", FILES / "m2-tp4" / "cuda.json")
        (FILES / "golden.json").write_text(json.dumps(answers), encoding="utf-8")
    print(f"wrote {FILES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
