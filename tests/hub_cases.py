"""A Hub on loopback, for the real client: repositories in memory behind the endpoints that uploads and downloads use.

It keeps commits, so revisions can be asked for; it knows tokens and what they may write; and it can drop the line in
the middle of an upload. What it answers was read off the Hub's client, huggingface_hub.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from huggingface_hub import constants
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

#: Who has a token: one who may write to `org`, and one who may only read.
WRITER, READER = "hf_writer", "hf_reader"
_LARGE = (".safetensors", ".png")


@dataclass
class Repo:
    """A repository: its commits, oldest first, each with the files of that moment."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits.append((oid, files))
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]


@dataclass
class Hub:
    """What is on the Hub, and what it was asked.

    repos:     by name. objects: large files that were uploaded, by their SHA-256, committed or not.
    requests:  how often each method and path was asked for, such as "GET /org/name/resolve/main/config.json".
    uploads:   the SHA-256 of large files, each time that one began to be uploaded.
    drop:      how many of the next uploads of large files break off in the middle, after `spare` whole ones.
    lose:      whether the answer to the next commit is lost on its way, although it was made.
    meanwhile: whether somebody else makes a commit just before the next one.
    yaml_errors: what is wrong with every model card.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    uploads: list[str] = field(default_factory=list)
    spare: int = 0
    drop: int = 0
    lose: bool = False
    meanwhile: bool = False
    yaml_errors: list[str] = field(default_factory=list)
    xet: str = ""
    server: uvicorn.Server | None = None

    def add(self, name: str, files: dict[str, bytes], *, private: bool = False) -> Repo:
        """A repository that is there already, with a commit of these files."""
        repo = self.repos[name] = Repo(private)
        repo.commit({".gitattributes": b"", **files})
        return repo

    def add_folder(self, name: str, folder: Path) -> Repo:
        """The same with the files of a folder."""
        return self.add(
            name,
            {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()},
        )

    def use_xet(self, folder: Path, *expected: bytes) -> Path:
        """Has large files go to a store of Xet in a folder, which the client writes itself; returns that folder.

        expected: the files that will, as the store keeps only chunks of them.
        """
        folder.mkdir()
        self.xet = f"local://{folder}"
        self.objects |= {_sha256(data): data for data in expected}
        return folder

    # What is asked

    async def answer(self, request: Request) -> Response:
        path = request.url.path
        self.requests[f"{request.method} {path}"] += 1
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in (WRITER, READER):
            return _error(401, "Invalid credentials in Authorization header")
        if path == "/api/validate-yaml":
            errors = [{"message": message} for message in self.yaml_errors]
            return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)
        if path == "/api/repos/create":
            return self._create(await request.json(), token)
        if path.startswith("/lfs/"):
            return await self._upload(request, path.removeprefix("/lfs/"))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            return await self._about("/".join(parts[2:4]), parts[4:], request, token)
        name = "/".join(parts[:2]).removesuffix(".git")
        if parts[2:] == ["info", "lfs", "objects", "batch"]:
            return self._batch(await request.json())
        if parts[2:3] == ["resolve"]:
            return self._resolve(name, parts[3], "/".join(parts[4:]), request, token)
        return Response(status_code=404)

    def _create(self, asked: dict[str, Any], token: str) -> Response:
        if token != WRITER or asked["organization"] != "org":
            where = asked["organization"]
            return _error(403, f'You don\'t have the rights to create a model under the namespace "{where}".')
        name = f"org/{asked['name']}"
        if name in self.repos:
            return _error(409, "You already created this model repo")
        self.add(name, {}, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return JSONResponse({"url": f"{self.url}/{name}", "name": name, "id": name})

    def _seen(self, name: str, token: str) -> Repo | None:
        repo = self.repos.get(name)
        return None if repo is None or (repo.private and not token) else repo

    async def _about(self, name: str, rest: list[str], request: Request, token: str) -> Response:
        repo = self._seen(name, token)
        if repo is None:
            return _error(404 if token else 401, "Repository not found", "RepoNotFound")
        match rest:
            case [] | ["revision", _]:
                found = repo.at(rest[1] if rest else "main")
                if found is None:
                    return _error(404, "Invalid rev id", "RevisionNotFound")
                oid, files = found
                siblings = [{"rfilename": path} for path in files]
                about = {"id": name, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []}
                return JSONResponse({**about, "downloads": 0, "likes": 0})
            case ["tree", revision]:
                found = repo.at(revision)
                if found is None:
                    return _error(404, "Invalid rev id", "RevisionNotFound")
                return JSONResponse([_entry(path, data) for path, data in found[1].items()])
            case ["xet-write-token", _]:
                exp = int(time.time()) + 3_600
                headers = {
                    "X-Xet-Cas-Url": self.xet,
                    "X-Xet-Access-Token": "xet",
                    "X-Xet-Token-Expiration": str(exp),
                }
                return JSONResponse({"casUrl": self.xet, "accessToken": "xet", "exp": exp}, headers=headers)
        if token != WRITER:
            return _error(403, "Forbidden: you must have write access to this repo")
        match rest:
            case ["settings"]:
                asked = await request.json()
                repo.private = (
                    asked.get("visibility", "private" if asked.get("private") else "public") != "public"
                )
                return JSONResponse({"private": repo.private})
            case ["preupload", _]:
                files = (await request.json())["files"]
                return JSONResponse({"files": [self._mode(repo, file["path"]) for file in files]})
            case ["commit", _]:
                return self._commit(repo, name, await request.body(), request)
        return Response(status_code=404)

    def _mode(self, repo: Repo, path: str) -> dict[str, Any]:
        large = path.endswith(_LARGE)
        data = repo.files.get(path)
        oid = {} if data is None else {"oid": _sha256(data) if large else _git(data)}
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **oid}

    def _batch(self, asked: dict[str, Any]) -> Response:
        objects = []
        for wanted in asked["objects"]:
            there = wanted["oid"] in self.objects
            href = f"{self.url}/lfs/{wanted['oid']}"
            objects.append({**wanted, **({} if there else {"actions": {"upload": {"href": href}}})})
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def _upload(self, request: Request, oid: str) -> Response:
        self.uploads.append(oid)
        if self.drop and not self.spare:
            self.drop -= 1
            async for _ in request.stream():
                break
            self._hang_up(request)
            return Response(status_code=500)
        self.spare -= self.spare > 0
        data = await request.body()
        if _sha256(data) != oid:
            return _error(400, "the bytes are not those that were announced")
        self.objects[oid] = data
        return Response()

    def _commit(self, repo: Repo, name: str, body: bytes, request: Request) -> Response:
        if self.meanwhile:
            self.meanwhile = False
            repo.commit({**repo.files, "theirs.txt": b"theirs"})
        files = dict(repo.files)
        for line in body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            match key:
                case "header":
                    if value.get("parentCommit", repo.commits[-1][0]) != repo.commits[-1][0]:
                        return _error(412, "A commit has happened since. Please refresh and try again.")
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.objects:
                        return _error(
                            400, f"LFS pointer pointed to a file that does not exist: {value['path']}"
                        )
                    files[value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    files.pop(value["path"])
                case _:
                    return _error(400, f"what is {key}?")
        oid = repo.commit(files)
        if self.lose:
            self.lose = False
            self._hang_up(request)
        url = f"{self.url}/{name}/commit/{oid}"
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _resolve(self, name: str, revision: str, path: str, request: Request, token: str) -> Response:
        repo = self._seen(name, token)
        if repo is None:
            return _error(404 if token else 401, "Repository not found", "RepoNotFound")
        found = repo.at(revision)
        if found is None:
            return _error(404, "Invalid rev id", "RevisionNotFound")
        oid, files = found
        if path not in files:
            return _error(404, "Entry not found", "EntryNotFound")
        data = files[path]
        etag = _sha256(data) if path.endswith(_LARGE) else _git(data)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Content-Length": str(len(data))}
        return Response(b"" if request.method == "HEAD" else data, headers=headers)

    def _hang_up(self, request: Request) -> None:
        """Cuts the connection, as a network does that breaks."""
        assert self.server is not None
        for connection in list(self.server.server_state.connections):
            if getattr(connection, "client", None) == tuple(request.client or ()):
                connection.transport.abort()  # pyright: ignore[reportAttributeAccessIssue]


def _error(status: int, message: str, code: str = "") -> Response:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return JSONResponse({"error": message}, status, headers)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": _git(data), "size": len(data), "path": path}
    if path.endswith(_LARGE):
        entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 134}
    return entry


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub that answers on a port of this machine."""
    hub = Hub()
    methods = ["GET", "HEAD", "POST", "PUT", "DELETE"]
    app = Starlette(routes=[Route("/{path:path}", hub.answer, methods=methods)])
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none")
    hub.server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(hub.server.serve()), daemon=True)  # pyright: ignore[reportOptionalMemberAccess]
    thread.start()
    while not hub.server.started:
        time.sleep(0.005)
    port = hub.server.servers[0].sockets[0].getsockname()[1]
    hub.url = f"http://127.0.0.1:{port}"
    try:
        yield hub
    finally:
        hub.server.should_exit = hub.server.force_exit = True
        thread.join(10)


class _Hasty:
    """The module `time` without waiting, for the client alone."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        pass


def point_client(patch: pytest.MonkeyPatch, url: str, home: Path, token: str | None = WRITER) -> None:
    """Has the Hub's client in this process talk to `url`, with a cache of its own in `home`.

    The client reads its environment when it is imported, so its constants are set too. Large files go by LFS, whose
    servers can be had here; the client's own store, Xet, cannot. It waits for seconds between two tries: not here.
    """
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr("huggingface_hub.utils._http.time", _Hasty())
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    if token is not None:
        patch.setenv("HF_TOKEN", token)
