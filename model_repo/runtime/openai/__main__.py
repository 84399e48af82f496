"""``python -m mm2c_runtime.openai``: the front as a process of its own, beside a Triton server.

API keys come through the environment variable MM2C_API_KEY, several separated by commas; a command line can be
read by everybody on the machine.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

import uvicorn

from mm2c_runtime.openai.api_keys import VARIABLE, keys_of
from mm2c_runtime.openai.app import Settings, create_app
from mm2c_runtime.openai.triton import Triton


def main() -> None:
    options = _arguments()
    keys = _keys()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    settings = Settings(
        tuple(dict.fromkeys(options.served_model_name)),
        options.metrics_url,
        keys,
        options.system_fingerprint,
        options.max_model_len,
    )
    uvicorn.run(
        create_app(lambda: Triton(options.triton), settings),
        host=options.host,
        port=options.port,
        access_log=options.verbose,
        log_level="info" if options.verbose else "warning",
        server_header=False,
        timeout_graceful_shutdown=options.drain,
        lifespan="on",
        ws="none",
    )


def _keys() -> tuple[bytes, ...]:
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return ()
    try:
        keys = keys_of(text)
    except ValueError as error:
        sys.exit(f"error: ${VARIABLE}: {error}")
    return keys or sys.exit(f"error: ${VARIABLE} is set and holds no key")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mm2c_runtime.openai", description=__doc__)
    parser.add_argument("--triton", required=True, metavar="HOST:PORT", help="Triton's gRPC address")
    parser.add_argument("--metrics-url", default="http://127.0.0.1:8002/metrics", help="Triton's metrics")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=9000, help="port to listen on")
    parser.add_argument(
        "--served-model-name", action="append", required=True, help="repeatable; the first is the default"
    )
    parser.add_argument("--system-fingerprint", help="what answers say about the build that made them")
    parser.add_argument("--max-model-len", type=int, help="tokens of context, told by /v1/models")
    parser.add_argument("--drain", type=int, help="seconds that running requests get at a stop; default: all")
    parser.add_argument("--verbose", action="store_true", help="log every request")
    return parser.parse_args()


if __name__ == "__main__":
    main()
