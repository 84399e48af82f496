"""The released members of the MiniMax-M2 family: what tells them apart, and their configurations by name.

They share one architecture. A member named instead of a path is its configuration alone: no file is needed to plan
for it or to compile its graphs.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm2c.bundle.cache import cache_root
from mm2c.checkpoint.config_keys import SIZES
from mm2c.checkpoint.refuse import did_you_mean
from mm2c.config import BLOCK, ModelConfig
from mm2c.errors import UserError

GEOMETRY: dict[str, Any] = {  # of every member, in the keys of config.json
    "num_hidden_layers": 62,
    "hidden_size": 3072,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rotary_dim": 64,
    "rope_theta": 5_000_000,
    "intermediate_size": 1536,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "vocab_size": 200064,
    "rms_norm_eps": 1e-06,
}
KINDS: dict[str, Any] = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "dtype": "bfloat16",
    "hidden_act": "silu",
    "scoring_func": "sigmoid",
    "use_routing_bias": True,
    "use_qk_norm": True,
    "qk_norm_type": "per_layer",
    "tie_word_embeddings": False,
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "float8_e4m3fn",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
    },
}
GENERATION = {"bos_token_id": 200019, "eos_token_id": 200020}
ORGANISATION = "MiniMaxAI"
_IDENTITY = re.compile(r"(?:You are|Your name is) (MiniMax-M2(?:\.\d+)?)\b(?!\.\d)")


@dataclass(frozen=True)
class Member:
    """``context``: max_position_embeddings; ``identity``: what its chat template calls the model."""

    name: str
    context: int
    identity: str

    @property
    def short(self) -> str:
        """``m2.7``, as on the command line."""
        return self.name.removeprefix("MiniMax-").lower()

    @property
    def hub_id(self) -> str:
        return f"{ORGANISATION}/{self.name}"

    def config_json(self) -> dict[str, Any]:
        """What of its config.json is compiled."""
        kinds = [1] * GEOMETRY["num_hidden_layers"]
        sizes = {**GEOMETRY, "max_position_embeddings": self.context, "attn_type_list": kinds}
        return {"_name_or_path": self.hub_id, **KINDS, **sizes}


MEMBERS = (
    Member("MiniMax-M2", 196_608, "MiniMax-M2"),
    Member("MiniMax-M2.1", 196_608, "MiniMax-M2.1"),
    Member("MiniMax-M2.5", 196_608, "MiniMax-M2.5"),
    Member("MiniMax-M2.7", 204_800, "MiniMax-M2.7"),
)
_BY_NAME = {name: member for member in MEMBERS for name in (member.short, member.name.lower())}


def member_named(name: str) -> Member | None:
    """The member of that name (``m2.7`` or ``MiniMax-M2.7``, in any case), None for other words."""
    return _BY_NAME.get(name.strip().lower())


def nearest_name(name: str) -> str:
    """``did you mean "m2.7"?`` where a word is nearly a member's name, else nothing."""
    word = name.strip().lower()
    return did_you_mean(word, _BY_NAME) if re.match(r"(minimax\W?)?m2", word) else ""


def member_folder(member: Member) -> Path:
    """A folder named after the member with its config.json and generation_config.json, in the compiler's cache.

    Raises:
        UserError: the cache cannot be written.
    """
    folder = cache_root() / "family" / member.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "config.json", member.config_json())
        _write(folder / "generation_config.json", GENERATION)
        os.utime(folder)  # used now: the cache leaves it alone
    except OSError as error:
        raise UserError(
            f"the configuration of {member.name} cannot be written into the cache: {error.strerror}",
            where=str(folder),
            remedy="set MM2C_CACHE to a folder that can be written, or give a config.json",
        ) from error
    return folder


def family_note(config: ModelConfig, chat_template: str | None, named: str = "") -> str:
    """Which member a checkpoint is, in a sentence; nothing where its geometry is none of theirs.

    The context tells M2.7 from the others, the identity line of the chat template (None: there is none) tells them
    all apart; where the two disagree both are said. Without a template ``named``, config.json's own word for where
    it is from, decides among those of its context.
    """
    if not _has_geometry(config):
        return ""
    fitting = [member for member in MEMBERS if member.context == config.context]
    found = _IDENTITY.search(chat_template) if chat_template else None
    said = next((member for member in MEMBERS if found and member.identity == found[1]), None)
    context = f"context of {config.context} tokens"
    if said is not None and said in fitting:
        return f"{said.name}, by its {context} and the identity in its chat template"
    if said is not None:
        return f"the chat template says {said.name} (context {said.context}), but this one has a {context}"
    member = member_named(named.rpartition("/")[2])
    if member is not None and member in fitting and not chat_template:
        return f"{member.name}, by its {context} and the name in config.json"
    if fitting:
        return f"{' or '.join(member.name for member in fitting)}, by its {context}"
    return f"the geometry of the MiniMax-M2 family, with a {context} as no release has it"


def with_family_note(notes: tuple[str, ...], config: ModelConfig, folder: Path) -> tuple[str, ...]:
    """``notes`` of a checkpoint's folder, with ``family_note`` first where it has something to say."""
    try:
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        template = None
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        named = None
    note = family_note(config, template, named if isinstance(named, str) else "")
    return (note, *notes) if note else notes


def _has_geometry(config: ModelConfig) -> bool:
    sizes = {field: GEOMETRY[key] for key, field in SIZES.items() if key in GEOMETRY}
    return all(getattr(config, field) == size for field, size in sizes.items())


def _write(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all: other builds may read it at this moment."""
    text = json.dumps(value, indent=1) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(name, path)
