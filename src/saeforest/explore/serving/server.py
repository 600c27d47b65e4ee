"""The explorer's server: the JSON API and the page, on this machine alone (docs/explorer-api.md).

It binds to 127.0.0.1. A request must name this machine in its Host header, so that no page of another site reaches it
under a name of its own, and must not come from another origin. It reads the run and the page's three files, and writes
nothing but annotations.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from http import HTTPStatus
from importlib.resources import files
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import InputError
from ...files import checksum_of_bytes, parse_json
from ...output import printable
from ..answers.parts import API_VERSION, plain
from ..api import Api, feature_of, to_json
from ..errors import NotFound, Unavailable, Unsupported
from .static import subtree_page

HOST, PORT = "127.0.0.1", 8421
#: Where the API is.
ROOT = f"/api/v{API_VERSION}/"
#: Where one subtree is downloaded as a file; the number of its root follows.
EXPORT = f"{ROOT}export/"
MOST_BODY, MOST_ADDRESS = 1 << 18, 1 << 13
_NAMES = ("127.0.0.1", "localhost", "[::1]")
_PORTS_TRIED = 50
# Larger answers are compressed, which costs more than it saves for smaller ones on one machine.
_WORTH_GZIP = 1 << 16
_PAGE = {
    "index.html": "text/html; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
}
_NO_PAGE = (
    "<!doctype html><html lang=en><title>saeforest</title><p>This installation lacks the page. The data are at "
    f'<a href="{ROOT}overview">{ROOT}overview</a>; <code>saeforest show RUN</code> prints the forest.'
)
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",
}
# Answers that take long enough to keep others waiting are made in a thread.
_SLOW = {"overview", "forest", "labels", "nulls", "search", "compare", "prompt", "training", "annotations"}
_SLOW |= {"rating", "blind", "ungated"}
# Features in a file of one subtree that is made for a download: about 20 MB.
_MOST_EXPORTED = 2000
# Large answers that are kept: only labels change, with the annotations.
_LASTING = {"forest", "nulls", "labels", "training"}


def make_app(api: Api) -> ASGIApp:
    """The application: answers requests with what `api` answers."""
    return _App(api)


class _App:
    def __init__(self, api: Api) -> None:
        self._api = api
        self._kept: dict[tuple[str, bool], tuple[int, bytes, str]] = {}
        self._lock = Lock()
        self._page = _page_files()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette's routes would answer some addresses by themselves, such as one with a line break, and not in JSON.
        if scope["type"] == "lifespan":
            for part in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{part}.complete"})
        elif scope["type"] == "http":
            response = await self._answer(Request(scope, receive))
            await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        try:
            if (why := refused(request)) is not None:
                return _error(HTTPStatus.FORBIDDEN, why)
            path: str = request.scope["path"]
            if len(path) + len(request.scope["query_string"]) > MOST_ADDRESS:
                return _error(
                    HTTPStatus.REQUEST_URI_TOO_LONG, f"address: expected at most {MOST_ADDRESS:,} bytes"
                )
            if path.startswith(EXPORT):
                return await self._export_answer(request, path.removeprefix(EXPORT))
            if path.startswith(ROOT):
                return await self._api_answer(request, path.removeprefix(ROOT))
            return self._page_answer(request, path.removeprefix("/") or "index.html")
        except ClientDisconnect:
            return _error(HTTPStatus.BAD_REQUEST, "the request ended before its body")
        except NotFound as error:
            return _error(HTTPStatus.NOT_FOUND, str(error))
        except Unsupported as error:
            return _error(HTTPStatus.METHOD_NOT_ALLOWED, str(error))
        except Unavailable as error:
            return _error(HTTPStatus.CONFLICT, str(error))
        except InputError as error:
            return _error(HTTPStatus.BAD_REQUEST, str(error))

    # -- the API

    async def _api_answer(self, request: Request, path: str) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        if method not in ("GET", "PUT", "POST"):
            return _error(
                HTTPStatus.METHOD_NOT_ALLOWED, f"{printable(method[:20])}: expected GET, PUT or POST"
            )
        query = dict(request.query_params)
        body = None if method == "GET" else await _body(request)
        zipped = "gzip" in request.headers.get("accept-encoding", "")
        slow = method != "GET" or path.partition("/")[0] in _SLOW
        make = lambda: self._made(method, path, query, body, zipped)  # noqa: E731
        data, tag = await run_in_threadpool(make) if slow else make()
        headers = {"ETag": f'"{tag}"'}
        if _matches(request, tag):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=_HEADERS | headers)
        if data[:2] == b"\x1f\x8b":
            headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        return Response(data, media_type="application/json", headers=_HEADERS | headers)

    def _made(
        self, method: str, path: str, query: dict[str, str], body: Any, zipped: bool
    ) -> tuple[bytes, str]:
        """The answer as bytes, compressed if that pays, and its tag."""
        lasting = method == "GET" and path in _LASTING
        version = self._api.annotations.version if path == "labels" else 0
        with self._lock:
            kept = self._kept.get((path, zipped)) if lasting else None
        if kept is not None and kept[0] == version:
            return kept[1:]
        data = to_json(plain(self._api.ask(method, path, query, body)))
        tag = checksum_of_bytes(data).removeprefix("xxh3:")[:16]
        if zipped and len(data) >= _WORTH_GZIP:
            data, tag = gzip.compress(data, 6 if lasting else 1, mtime=0), f"{tag}-gzip"
        if lasting:
            with self._lock:
                self._kept[path, zipped] = version, data, tag
        return data, tag

    async def _export_answer(self, request: Request, feature: str) -> Response:
        """A feature, all below it and its ancestors as one HTML file (`export_subtree`)."""
        if request.method not in ("GET", "HEAD"):
            raise Unsupported(f"export/{printable(feature[:20])}: expected GET")
        root = feature_of(feature)
        self._api.features.check(root)
        text, _ = await run_in_threadpool(lambda: subtree_page(self._api, root, most=_MOST_EXPORTED))
        headers = {"Content-Disposition": f'attachment; filename="{file_name(self._api.title, root)}"'}
        return Response(text, media_type="text/html; charset=utf-8", headers=_HEADERS | headers)

    # -- the page

    def _page_answer(self, request: Request, name: str) -> Response:
        if name not in self._page:
            raise NotFound(f"{printable(name[:100])}: no such page; the explorer is at /")
        if request.method not in ("GET", "HEAD"):
            raise Unsupported(f"{name}: expected GET")
        data, tag = self._page[name]
        headers = _HEADERS | {"ETag": f'"{tag}"'}
        if _matches(request, tag):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(data, media_type=_PAGE[name], headers=headers)


def file_name(title: str, root: int) -> str:
    """The name of a downloaded subtree: plain characters alone, as it stands in a header."""
    plain_title = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-")[:60]
    return f"{plain_title or 'saeforest'}-{root}.html"


def refused(request: Request) -> str | None:
    """Why a request is refused before it is looked at: it names another host, or comes from another site."""
    host = request.headers.get("host", "")
    if _host_name(host) not in _NAMES:
        return f"Host {printable(host[:100])!r}: expected {HOST} or localhost"
    origin = request.headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return "the request comes from another origin"
    site = request.headers.get("sec-fetch-site", "none")
    in_api = request.scope["path"].startswith("/api/")
    opens_page = request.headers.get("sec-fetch-mode") == "navigate" and not in_api
    if site not in ("same-origin", "none") and not opens_page:
        return "the request comes from another site"
    return None


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port; None if it is not valid."""
    try:
        parts = urlsplit(f"http://{host}")
        _ = parts.port
    except ValueError:
        return None
    if parts.netloc != host or "@" in host or not host:
        return None
    return host.rpartition(":")[0] if parts.port is not None else host


async def _body(request: Request) -> Any:
    """The JSON in the body of a request; None if it is empty. Raises InputError if it is too large or not JSON."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MOST_BODY:
            raise InputError(f"the body: expected at most {MOST_BODY:,} bytes")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a page of another site cannot send without asking first
        raise InputError("the body: expected Content-Type application/json")
    return parse_json(bytes(data), "the body") if data else None


def _error(status: HTTPStatus, message: str) -> Response:
    line = printable(" ".join(message.split()))
    return Response(
        to_json({"error": line}), status_code=status, media_type="application/json", headers=dict(_HEADERS)
    )


def _matches(request: Request, tag: str) -> bool:
    given = request.headers.get("if-none-match", "").split(",")
    return request.method in ("GET", "HEAD") and f'"{tag}"' in {t.strip().removeprefix("W/") for t in given}


def _page_files() -> dict[str, tuple[bytes, str]]:
    """The files of the page, by name, with their tags. They are part of the package, and read once."""
    found: dict[str, tuple[bytes, str]] = {}
    folder = files("saeforest.explore.serving") / "page"
    for name in _PAGE:
        with suppress(OSError):
            data = (folder / name).read_bytes()
            found[name] = data, checksum_of_bytes(data).removeprefix("xxh3:")[:16]
    if "index.html" not in found:
        found["index.html"] = _NO_PAGE.encode(), "none"
    return found


# -- running it


def listen(port: int = PORT, *, any_port: bool = False) -> socket.socket:
    """A socket that listens on a port of this machine.

    port: 0 for any free one. any_port: whether to take the next free port if this one is in use.

    Raises InputError if the port is in use or not allowed.
    """
    if not 0 <= port < 1 << 16:
        raise InputError(f"port {port}: expected 0 to 65535")
    tried = range(port, min(port + _PORTS_TRIED, 1 << 16)) if any_port and port else [port]
    why = OSError()
    for number in tried:
        # asyncio sends at once (TCP_NODELAY) only on sockets that say they are of TCP: otherwise an answer waits 40 ms.
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((HOST, number))
            found.listen(128)
            return found
        except OSError as error:
            found.close()
            why = error
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                break
    if why.errno == errno.EADDRINUSE:
        raise InputError(f"port {port}: in use, perhaps by another explorer")
    raise InputError(f"port {port}: cannot be used ({why.strerror}); expected one from 1024 to 65535")


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to `serve`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with nullcontext():
            yield


def serve(api: Api, listener: socket.socket, started: Callable[[], None] = lambda: None) -> None:
    """Answer requests until Ctrl-C or a signal to stop; then end those in progress, and close the annotations.

    started: called once requests are answered.
    """
    config = uvicorn.Config(
        make_app(api),
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=3,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=1 << 16,
        ws="none",
    )
    server = _Server(config)

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            server.force_exit = server.should_exit  # at once, at the second signal
            server.should_exit = True

        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with suppress(NotImplementedError, ValueError, RuntimeError):  # not in the main thread
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    loop.add_signal_handler(signum, stop)
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            started()
        await serving

    try:
        asyncio.run(run())
    finally:
        listener.close()
        api.annotations.close()
