"""The engine process of the tests: the toy engine behind the real server. Run with --socket PATH --parent
PID."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from toy_engine import ToyExecutor, toy_engine

from mm2c_runtime.errors import BundleError
from mm2c_runtime.server.process import die_with_parent, end, serve

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--delay", type=float, default=0.002)
    options = parser.parse_args()
    die_with_parent(options.parent)
    try:
        serve(
            toy_engine(ToyExecutor(delay=options.delay)), options.socket, {"model": {"name": "toy"}}, drain=3
        )
    except BundleError as error:
        print(error, file=sys.stderr)
        end(1)
    end(0)
