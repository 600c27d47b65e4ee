"""The built page and a made-up forest behind HTTP, with the headers that the real server sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Thread
from typing import Any

from explore_page.made_api import MadeForest

KINDS = {"index.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@contextmanager
def serving(made: MadeForest) -> Iterator[str]:
    """Serve `made` on loopback; gives the page's address."""
    bundle = files("saeforest.explore.serving") / "page"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", POLICY)
            self.end_headers()
            self.wfile.write(body)

        def json(self, make: Any) -> None:
            try:
                status, value = 200, make()
            except LookupError as error:
                status, value = 404, {"error": str(error.args[0])}
            except ValueError as error:
                status, value = 400, {"error": str(error)}
            self.answer(status, "application/json", json.dumps(value).encode())

        def do_GET(self) -> None:
            name = self.path.removeprefix("/") or "index.html"
            if name in KINDS:
                self.answer(200, KINDS[name], (bundle / name).read_bytes())
            elif name.startswith("api/v1/"):
                self.json(lambda: made.get(name.removeprefix("api/v1/")))
            else:
                self.answer(404, "text/plain", b"not here")

        def change(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.json(lambda: made.change(self.path.removeprefix("/api/v1/"), body))

        do_POST = do_PUT = change

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
