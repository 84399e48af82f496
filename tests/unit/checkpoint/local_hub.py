"""A hub of one model on localhost: the four kinds of requests that a snapshot download makes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


@contextmanager
def local_hub(repo: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(endpoint, requests seen so far) of a server that has ``folder`` as ``repo`` at revision main."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return

        def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            seen.append(f"{self.command} {path}")
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            names = [p.relative_to(folder).as_posix() for p in files]
            for revision in ("main", COMMIT):
                if path == f"/api/models/{repo}/revision/{revision}":
                    siblings = [{"rfilename": name} for name in names]
                    return self.answer(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())
                if path == f"/api/models/{repo}/tree/{revision}":
                    tree = [
                        {
                            "type": "file",
                            "path": n,
                            "size": p.stat().st_size,
                            "oid": hashlib.sha1(n.encode()).hexdigest(),
                        }
                        for n, p in zip(names, files, strict=True)
                    ]
                    return self.answer(json.dumps(tree).encode())
                prefix = f"/{repo}/resolve/{revision}/"
                if path.startswith(prefix) and path.removeprefix(prefix) in names:
                    name = path.removeprefix(prefix)
                    etag = {"ETag": f'"{hashlib.sha1(name.encode()).hexdigest()}"', "X-Repo-Commit": COMMIT}
                    return self.answer((folder / name).read_bytes(), etag)
            code = "RepoNotFound" if repo not in path else "RevisionNotFound"
            return self.answer(b"{}", {"X-Error-Code": code}, 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
