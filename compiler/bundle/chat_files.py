"""The chat files of a checkpoint: whether the serving runtime can work with them, found out before any work."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm2c.checkpoint import read_config
from mm2c.checkpoint.config_file import read_json
from mm2c.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from mm2c.config import ModelConfig

REQUIRED = ("config.json", "tokenizer.json")
OPTIONAL = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
HELLO = [{"role": "user", "content": "Hello"}]


def chat_template_of(checkpoint: Path) -> str:
    """The checkpoint's own template: ``chat_template.jinja``, else the field of tokenizer_config.json.

    Raises:
        UserError: there is none, or its file cannot be read.
    """
    own = checkpoint / "chat_template.jinja"
    if own.is_file():
        try:
            return own.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{own.name} cannot be read: {error}", where=str(own), remedy=_again(own)
            ) from None
    field = _optional(checkpoint / "tokenizer_config.json").get("chat_template")
    if isinstance(field, list):  # several by name; "default" is what transformers takes
        field = next(
            (t.get("template") for t in field if isinstance(t, dict) and t.get("name") == "default"), None
        )
    if isinstance(field, str):
        return field
    raise UserError(
        "the checkpoint has no chat template",
        where=str(checkpoint),
        remedy="put the release's chat_template.jinja into the folder",
    )


def check_chat_files(checkpoint: Path) -> None:
    """Refuse a checkpoint that cannot be served: every chat file is loaded as the runtime will load it.

    Raises:
        UserError: tokenizer.json does not load or has ids beyond the model's vocabulary, the template does not
            compile or cannot render one message, a side file is damaged, or generation would never end.
    """
    for name in REQUIRED:
        if not (checkpoint / name).is_file():
            raise UserError(
                f"the checkpoint has no {name}",
                where=str(checkpoint),
                remedy=f"copy {name} of the release into the folder",
            )
    config = read_config(checkpoint).model
    for name in OPTIONAL:
        _optional(checkpoint / name)
    tokenizer = _tokenizer(checkpoint / "tokenizer.json", config)
    _check_eos(checkpoint, tokenizer, config)
    _check_generation(checkpoint / "generation_config.json", config)
    _check_template(checkpoint)


def _again(path: Path) -> str:
    return f"copy {path.name} of the release into the folder again"


def _optional(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    return read_json(path) if path.is_file() else {}


def _tokenizer(path: Path, config: ModelConfig) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise UserError(
            f"tokenizer.json does not load: {error}", where=str(path), remedy=_again(path)
        ) from None
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if not ids:
        raise UserError("tokenizer.json has no tokens", where=str(path), remedy=_again(path))
    token, highest = max(ids.items(), key=lambda item: item[1])
    if highest >= config.vocab:
        raise UserError(
            f"tokenizer.json has the token {token!r} with id {highest}, "
            f"but config.json's vocab_size is {config.vocab}",
            where=str(path),
            remedy="take tokenizer.json and config.json from the same checkpoint",
        )
    return tokenizer


def _check_eos(checkpoint: Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    if not config.eos:
        raise UserError(
            "neither generation_config.json nor config.json has an eos_token_id: no answer would ever end",
            where=str(checkpoint),
            remedy="copy generation_config.json of the release into the folder",
        )
    for token in config.eos:
        if tokenizer.id_to_token(token) is None:
            raise UserError(
                f"eos_token_id {token} is no token of tokenizer.json: no answer would ever end",
                where=str(checkpoint),
                remedy="take generation_config.json and tokenizer.json from the same checkpoint",
            )


def _check_generation(path: Path, config: ModelConfig) -> None:
    from mm2c_runtime.errors import BundleError
    from mm2c_runtime.generation_defaults import GenerationDefaults

    try:
        GenerationDefaults.load(path, eos=config.eos, vocab=config.vocab)
    except BundleError as error:
        raise UserError(error.what, where=str(path), remedy="correct it, or remove the key") from None


def _check_template(checkpoint: Path) -> None:
    from mm2c_runtime.chat import ChatTemplate
    from mm2c_runtime.errors import BundleError, RequestError

    own, side = checkpoint / "chat_template.jinja", checkpoint / "tokenizer_config.json"
    where = str(own if own.is_file() else side)
    remedy = "copy chat_template.jinja of the release into the folder again"
    try:
        with tempfile.TemporaryDirectory() as folder:  # as it will lie in the bundle
            (Path(folder) / own.name).write_text(chat_template_of(checkpoint), encoding="utf-8")
            if side.is_file():
                shutil.copyfile(side, Path(folder) / side.name)
            prompt = ChatTemplate.from_bundle(folder).render(HELLO)
    except BundleError as error:
        raise UserError(error.what, where=where, remedy=remedy) from None
    except RequestError as error:
        raise UserError(
            f"the chat template cannot render one user message: {error.message}", where=where, remedy=remedy
        ) from None
    if not prompt.strip():
        raise UserError("the chat template renders one user message to nothing", where=where, remedy=remedy)
