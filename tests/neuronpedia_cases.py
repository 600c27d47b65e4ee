"""A site on loopback that answers as Neuronpedia's API does, with its limits, and records what it is sent.

The limits are those of its source: apps/webapp/app/api/{model/new,source-set/new,feature/upload-batch}/route.tsx.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-np-secret"


class Refused(Exception):
    """What is answered with HTTP 400."""


def need(holds: object, why: str) -> None:
    if not holds:
        raise Refused(why)


class Site(ThreadingHTTPServer):
    """models: id -> layers; sets: (model, set) -> sources; features: (model, source) -> index -> feature.

    trouble: for the next requests to upload, one word each: "500" before storing, "lost" after storing.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, int] = {}
        self.sets: dict[tuple[str, str], list[str]] = {}
        self.features: dict[tuple[str, str], dict[int, Any]] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.trouble: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/api"

    def __enter__(self) -> Site:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def uploads(self) -> list[Any]:
        return [body for _, path, body in self.requests if path == "feature/upload-batch"]

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """The status and the answer to a request."""
        match path.split("/"):
            case ["model", "get"]:
                return 200, {"id": body["id"]} if body["id"] in self.models else None
            case ["model", "new"]:
                self._new_model(body)
                return 200, {"id": body["id"], "layers": body["layers"]}
            case ["source-set", "new"]:
                self._new_set(body)
                return 200, self._set(body["modelId"], body["name"])
            case ["source-set", model, name]:
                return 200, self._set(model, name)
            case ["feature", "upload-batch"]:
                self._upload(body)
                return 200, {"message": f"{len(body['features'])} features created."}
            case ["feature", model, source, index]:
                found = self.features.get((model, source), {}).get(int(index))
                return (404, {"error": "Not found"}) if found is None else (200, found)
            case _:
                return 404, {"error": "no such path"}

    def _set(self, model: str, name: str) -> Any:
        if (model, name) not in self.sets:
            return None
        sources = [{"id": s, "modelId": model, "setName": name} for s in self.sets[model, name]]
        return {"name": name, "modelId": model, "description": name, "urls": [], "sources": sources}

    def _new_model(self, body: Any) -> None:
        need(re.fullmatch(r"[a-z][a-z0-9.-]*[a-z0-9]", body["id"]) and len(body["id"]) <= 32, "id")
        need("--" not in body["id"] and ".." not in body["id"], "double")
        need(isinstance(body["layers"], int) and 1 <= body["layers"] <= 127, "layers")
        need(1 <= len(body["displayName"]) <= 64, "displayName")
        need(body["id"] not in self.models, "Model already exists")
        self.models[body["id"]] = body["layers"]

    def _new_set(self, body: Any) -> None:
        need(re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", body["name"]) and "--" not in body["name"], "name")
        need(body["modelId"] in self.models, "Model not found")
        need(body["description"] is None or len(body["description"]) <= 128, "description")
        need(body["url"] is None or body["url"].startswith("http"), "url")
        layers = range(self.models[body["modelId"]])
        self.sets[body["modelId"], body["name"]] = [f"{layer}-{body['name']}" for layer in layers]

    def _upload(self, body: Any) -> None:
        model, source, features = body["modelId"], body["source"], body["features"]
        need(source in self.sets.get((model, source.partition("-")[2]), ()), "Source not found")
        need(1 <= len(features) <= 128, "features")
        need(len({f["index"] for f in features}) == len(features), "unique")
        for feature in features:
            _check_feature(feature)
        there = self.features.setdefault((model, source), {})
        for feature in features:
            need(feature["index"] not in there, f"feature {feature['index']} is uploaded twice")
            there[feature["index"]] = feature


def _check_feature(feature: Any) -> None:
    need(isinstance(feature["index"], int) and 0 <= feature["index"] <= 10_000_000, "index")
    need(0 <= feature["density"] <= 1, "density")
    for key in ("topLogits", "bottomLogits"):
        need(len(feature[key]) <= 20 and all(logit["token"] for logit in feature[key]), key)
    for explanation in feature["explanations"]:
        need(1 <= len(explanation["text"]) <= 512, "text")
        need(explanation["methodName"] is None and explanation["modelName"] is None, "unknown names")
    need(feature["activations"], "activations")
    for activation in feature["activations"]:
        tokens, values = activation["tokens"], activation["values"]
        need(1 <= len(tokens) <= 1024 and len(tokens) == len(values), "tokens")
        need(all(isinstance(token, str) and token for token in tokens), "token")
        need(all(isinstance(value, int | float) for value in values), "value")
        share = activation["quantileFraction"]
        need(share is None or 0 <= share <= 1, "quantileFraction")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, body: Any) -> None:
        site = self.server
        assert isinstance(site, Site)
        path = self.path.removeprefix("/api/")
        site.requests.append((self.command, path, body))
        uploading = path == "feature/upload-batch"
        trouble = site.trouble.pop(0) if uploading and site.trouble else ""
        if self.headers["X-Api-Key"] != KEY:
            return self._reply(401, {"error": f"the key {self.headers['X-Api-Key']} is not known"})
        if trouble == "500":
            return self._reply(500, {"error": "Failed to create features."})
        if trouble == "moved":
            return self._reply(308, {}, {"Location": "https://elsewhere.example/api"})
        try:
            status, answer = site.answer(path, body)
        except Refused as why:
            status, answer = 400, {"error": str(why)}
        if trouble == "lost":
            self.close_connection = True
            return None
        return self._reply(status, answer)

    def _reply(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
