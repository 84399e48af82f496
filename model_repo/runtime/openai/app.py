"""The HTTP application: routes, and errors in OpenAI's shape everywhere."""

from __future__ import annotations

import difflib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mm2c_runtime.errors import RequestError
from mm2c_runtime.openai import chat_request, completion_request
from mm2c_runtime.openai.answer import Head, Parts, Usage, stream, told
from mm2c_runtime.openai.body import read_object
from mm2c_runtime.openai.chat import ChatChunks, chat_completion
from mm2c_runtime.openai.choices import Generation, side_by_side
from mm2c_runtime.openai.completions import TextChunks, text_completion
from mm2c_runtime.openai.connection import ClientGone, Events, begun, while_connected
from mm2c_runtime.openai.errors import ApiError
from mm2c_runtime.openai.key_check import KeyCheck
from mm2c_runtime.openai.metrics import metrics_reply
from mm2c_runtime.openai.replies import error_reply, json_reply

log = logging.getLogger("mm2c.openai")


class Engine(Protocol):
    """What the front asks: ``triton.Triton``."""

    async def ready(self) -> bool: ...
    def generate(self, fields: dict[str, str | bool], *, logprobs: bool) -> Generation: ...
    async def close(self) -> None: ...


@dataclass(frozen=True)
class Settings:
    """``models``: names that requests may use, the first is the default. ``keys``: none means open to all.

    ``max_model_len``: tokens of a prompt and its answer, told by ``/v1/models``; None leaves it out.
    """

    models: tuple[str, ...]
    metrics_url: str
    keys: tuple[bytes, ...] = field(default=(), repr=False)
    system_fingerprint: str | None = None
    max_model_len: int | None = None


def create_app(connect: Callable[[], Engine], settings: Settings) -> FastAPI:
    """``connect`` is called in the event loop that serves."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        app.state.front = Front(connect(), settings)
        yield
        await app.state.front.engine.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    for path, method, endpoint in (
        ("/v1/chat/completions", "POST", Front.chat),
        ("/v1/completions", "POST", Front.completions),
        ("/v1/models", "GET", Front.list_models),
        ("/v1/models/{model:path}", "GET", Front.show_model),
        ("/health", "GET", Front.health),
        ("/metrics", "GET", Front.metrics),
    ):
        app.router.add_route(path, _bound(endpoint), methods=[method])
    app.add_exception_handler(ApiError, _on_error)
    app.add_exception_handler(ClientGone, _on_error)
    app.add_exception_handler(HTTPException, _on_error)
    app.add_exception_handler(Exception, _on_error)
    if settings.keys:
        app.add_middleware(KeyCheck, keys=settings.keys)
    return app


class Front:
    """The endpoints. Every one raises ApiError for what it refuses."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self._settings = engine, settings
        self._created = int(time.time())

    async def chat(self, request: Request) -> Response:
        body = await read_object(request)
        asked = chat_request.read_chat(body)
        head = self._head(asked.model, "chatcmpl-", "chat.completion", asked.stream)
        parts = self._parts(chat_request.engine_inputs(asked, body), asked.logprobs)
        usage = Usage(asked.n)
        if asked.stream:
            events = stream(parts, head, usage, ChatChunks(), body, usage_wanted=asked.usage_wanted)
            return Events(await begun(request, events), _request_id())
        return await _whole(request, chat_completion(parts, head, usage), body)

    async def completions(self, request: Request) -> Response:
        body = await read_object(request)
        asked = completion_request.read_completion(body)
        head = self._head(asked.model, "cmpl-", "text_completion", stream=False)
        parts = self._parts(completion_request.engine_inputs(asked, body), asked.logprobs is not None)
        usage = Usage(asked.n)
        if asked.stream:
            events = stream(parts, head, usage, TextChunks(asked), body, usage_wanted=asked.usage_wanted)
            return Events(await begun(request, events), _request_id())
        return await _whole(request, text_completion(parts, head, usage, asked), body)

    async def list_models(self, request: Request) -> Response:
        return json_reply({"object": "list", "data": [self._model(name) for name in self._settings.models]})

    async def show_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        self._check_model(name)
        return json_reply(self._model(name))

    async def health(self, request: Request) -> Response:
        if await self.engine.ready():
            return json_reply({"status": "ready"})
        raise ApiError(
            503,
            "the server behind this one is not ready; it may be starting, or restarting its engine",
            type="server_error",
            code="service_unavailable",
        )

    async def metrics(self, request: Request) -> Response:
        return await metrics_reply(self._settings.metrics_url)

    def _parts(self, inputs: list[dict[str, str | bool]], logprobs: bool) -> Parts:
        return side_by_side([self.engine.generate(one, logprobs=logprobs) for one in inputs])

    def _head(self, model: str | None, prefix: str, object: str, stream: bool) -> Head:
        name = self._settings.models[0] if model is None else model
        self._check_model(name)
        return Head(prefix, f"{object}.chunk" if stream else object, name, self._settings.system_fingerprint)

    def _check_model(self, name: str) -> None:
        models = self._settings.models
        if name not in models:
            close = difflib.get_close_matches(name, models, n=1, cutoff=0.4)
            hint = f'did you mean "{close[0]}"?' if close else f"served here: {', '.join(models)}"
            message = f'the model "{name[:200]}" does not exist; {hint}'
            raise ApiError(404, message, param="model", code="model_not_found")

    def _model(self, name: str) -> dict[str, Any]:
        length = self._settings.max_model_len
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "mm2c",
            **({} if length is None else {"max_model_len": length}),
        }


async def _whole(request: Request, answer: Any, body: dict[str, Any]) -> Response:
    try:
        return json_reply(await while_connected(request.receive, answer), headers=_request_id())
    except RequestError as error:
        raise told(error, body) from None


def _bound(endpoint: Callable[[Front, Request], Any]) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        reply: Response = await endpoint(request.app.state.front, request)
        return reply

    return handle


def _request_id() -> dict[str, str]:
    return {"x-request-id": f"req_{secrets.token_hex(16)}"}


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientGone):
        return Response(status_code=499)
    if isinstance(error, HTTPException):
        error = _of_http(request, error)
    if not isinstance(error, ApiError):  # the server that runs this logs it with its traceback
        error = told(RequestError("INTERNAL", f"{type(error).__name__}"), ())
    error.headers.update(_request_id())
    return error_reply(error)


def _of_http(request: Request, error: HTTPException) -> ApiError:
    method, path = request.method, request.url.path[:200]
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return ApiError(404, f"unknown path: {method} {path}", code="unknown_url", headers=headers)
    if error.status_code == 405:
        message = f"{path} does not take {method}"
        return ApiError(405, message, code="method_not_supported", headers=headers)
    return ApiError(error.status_code, str(error.detail), headers=headers)
