"""`mm2c serve`'s options of the OpenAI-compatible front, read and checked before anything starts."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from mm2c.errors import UserError
from mm2c.serve.openai_front import FrontSettings, check_front, in_url, reachable
from mm2c.serve.server import TELL_SECONDS, Settings
from mm2c_runtime.manifest import Manifest
from mm2c_runtime.openai.api_keys import VARIABLE, keys_of


@dataclass(frozen=True)
class OpenAIOptions:
    """``keys``: separated by commas; None lets everybody in. ``models``: none for the bundle's own name."""

    host: str
    port: int
    keys: str | None = field(repr=False)
    models: tuple[str, ...]

    @classmethod
    def of(
        cls,
        port: int | None,
        host: str | None,
        key_file: Path | None,
        models: list[str] | None,
        triton_host: str,
    ) -> OpenAIOptions | None:
        """None without a port. ``host``: None for ``triton_host``.

        Raises UserError for options that then have no effect, and for bad keys.
        """
        if port is None:
            for option, value in (
                ("--openai-host", host),
                ("--api-key-file", key_file),
                ("--served-model-name", models),
            ):
                if value:
                    raise UserError(
                        f"{option} is of the OpenAI API, which is not started",
                        remedy="add --openai-port PORT, or leave it out",
                    )
            return None
        names = tuple(dict.fromkeys(models or ()))
        if not all(name.strip() for name in names):
            raise UserError("a model's name is empty", where="--served-model-name")
        return cls(host or triton_host, port, _keys(key_file), names)

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port


def front_settings(options: OpenAIOptions, server: Settings, manifest: Manifest) -> FrontSettings:
    """``server``: the Settings of the Triton behind it, whose ports are chosen. Raises UserError where the front
    cannot run."""
    check_front(server.bundle)
    assert server.ports.openai is not None
    host = in_url(reachable(server.host))
    return FrontSettings(
        server.bundle,
        options.host,
        server.ports.openai,
        f"{host}:{server.ports.grpc}",
        f"http://{host}:{server.ports.metrics}/metrics",
        options.models or (manifest.model.name,),
        server.log,
        options.keys,
        f"fp_{manifest.build_key[:12]}",
        manifest.limits.context,
        server.drain + TELL_SECONDS,  # what outlives Triton's drain is to hear so
        server.verbose,
    )


def _keys(file: Path | None) -> str | None:
    """From ``file``, else from the environment. A source that is named and holds no key is refused: it was meant to
    close the port."""
    where, text = f"--api-key-file {file}", os.environ.get(VARIABLE)
    if file is None:
        if text is None:
            return None
        where = f"${VARIABLE}"
    else:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise UserError(f"the API keys cannot be read: {reason.lower()}", where=where) from None
    try:
        keys = keys_of(text or "")
    except ValueError as error:
        raise UserError(str(error), where=where, remedy="one key a line, or separated by commas") from None
    if not keys:
        raise UserError("there is no API key in it", where=where, remedy="give one, or leave it out")
    return ",".join(key.decode() for key in keys)
