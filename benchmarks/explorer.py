"""How fast the explorer's server answers, at the size of the paper's largest SAE, with a synthetic index.

    python benchmarks/explorer.py --clients 20

The server runs in a process of its own; the clients keep their connections open. "at once" means that each client asks
again as soon as it has its answer, so that the time grows with the number of clients; "a second apart" that each waits
about a second, as people do who leaf through features. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import random
import resource
import time
from typing import Any

import torch

from saeforest.explore import Explorer, Index
from saeforest.explore.api import Api
from saeforest.explore.index import About
from saeforest.explore.index.form import CONTEXTS, SAMPLES, WINDOW, unused
from saeforest.explore.measuring.columns import COLUMNS
from saeforest.explore.serving.server import listen, serve
from saeforest.lm import load_tokenizer
from saeforest.structure.forest import Forest
from saeforest.text import Tokens

CONTEXT = 128


def layers_of(features: int) -> tuple[int, ...]:
    """The sizes of the 4 layers: 2,048, 4,096, 6,144 and 12,288 of 24,576 features."""
    first = (features // 12, features // 6, features // 4)
    return (*first, features - sum(first))


def synthetic(layers: tuple[int, ...], n_tokens: int, vocabulary: int) -> tuple[Index, Forest]:
    """An index of features in 4 layers over random tokens, and its forest."""
    generator = torch.Generator().manual_seed(0)
    d_sae, n_rows = sum(layers), n_tokens // CONTEXT * CONTEXT
    starts = torch.tensor([0, *layers]).cumsum(0)
    parent = torch.full((d_sae,), -1)
    for layer in range(1, len(layers)):
        first, end = int(starts[layer]), int(starts[layer + 1])
        parent[first:end] = torch.randint(
            int(starts[layer - 1]), int(starts[layer]), (end - first,), generator=generator
        )
    forest = Forest(parent, layers)
    # Frequent tokens are frequent, as in text.
    ids = (torch.rand(n_rows // CONTEXT, CONTEXT, generator=generator) ** 3 * vocabulary).int()
    document_starts = torch.arange(0, n_rows, 4 * CONTEXT)
    tokens = Tokens(ids, document_starts, tuple(f"document {i}" for i in range(len(document_starts))))
    parents = (forest.n_children > 0).nonzero().flatten()
    names = [column.about.name for column in COLUMNS]

    def rows(*shape: int) -> torch.Tensor:
        return torch.randint(0, n_rows, shape, generator=generator, dtype=torch.int32)

    def floats(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    near = torch.randint(0, d_sae, (d_sae, 8), generator=generator, dtype=torch.int32)
    window = torch.randint(
        0, 256, (d_sae, CONTEXTS + SAMPLES, WINDOW), generator=generator, dtype=torch.uint8
    )
    window[torch.rand(window.shape, generator=generator) < 0.8] = 0
    tensors = unused(d_sae, CONTEXTS, names, n_parents=len(parents), n_null=4000) | {
        "n_fired": torch.randint(20, n_rows // 20, (d_sae,), generator=generator),
        "n_with_parent": torch.full((d_sae,), 20),
        "value_sum": 1000 * floats(d_sae),
        "value_max": 5 + floats(d_sae),
        "top_value": (5 * floats(d_sae, CONTEXTS)).sort(1, descending=True).values,
        "top_row": rows(d_sae, CONTEXTS),
        "histogram": torch.randint(0, 100, (d_sae, 32), generator=generator, dtype=torch.int32),
        "sample_row": rows(d_sae, SAMPLES),
        "sample_value": floats(d_sae, SAMPLES),
        "window_values": window,
        "parents": parents,
        "window_child": torch.zeros(len(parents), CONTEXTS + SAMPLES, WINDOW, dtype=torch.int32),
        **{f"{name}_id": near for name in ("near", "over", "under")},
        "near_cos": floats(d_sae, 8),
        "over_p": floats(d_sae, 8),
        "under_p": floats(d_sae, 8),
        "child_tokens": torch.randint(0, vocabulary, (d_sae, 5), generator=generator, dtype=torch.int32),
        "null_parent": rows(4000) % d_sae,
        "null_child": rows(4000) % d_sae,
        **{f"column.{name}": floats(d_sae) for name in names},
        **{f"place.{name}": floats(d_sae) for name in names},
        **{f"null.{name}": floats(4000) for name in names},
    }
    about = About(
        "synthetic", "none", n_rows, 20, "document", 0.01, "", columns=tuple(c.about for c in COLUMNS)
    )
    return Index.of_tensors(about, tokens, tensors), forest


def run_server(layers: tuple[int, ...], n_tokens: int, ready: Any) -> None:
    torch.set_num_threads(1)
    tokenizer = load_tokenizer("smollm2-135m")
    index, forest = synthetic(layers, n_tokens, len(tokenizer))
    began = time.monotonic()
    api = Api(Explorer(index, forest, tokenizer))
    api.prepare()
    listener = listen(0)
    about = {"port": listener.getsockname()[1], "prepare_s": round(time.monotonic() - began, 2)}
    serve(api, listener, lambda: ready.send(about))
    ready.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


class Client:
    """A connection that is kept open."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 26)

    async def get(self, path: str) -> tuple[float, int]:
        """Milliseconds and bytes of the answer."""
        began = time.perf_counter()
        self._writer.write(
            f"GET /api/v1/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: gzip\r\n\r\n".encode()
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        assert " 200 " in lines[0], head
        length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
        await self._reader.readexactly(length)
        return 1e3 * (time.perf_counter() - began), length


def summary(times: list[tuple[float, int]]) -> dict[str, float]:
    ms = sorted(ms for ms, _ in times)
    at = lambda share: round(ms[min(int(share * len(ms)), len(ms) - 1)], 1)  # noqa: E731
    size = sum(length for _, length in times) / len(times) / 2**10
    return {"p50_ms": at(0.5), "p95_ms": at(0.95), "n": len(ms), "kilobytes": round(size, 1)}


async def many(port: int, clients: int, requests: int, pause: float, d_sae: int) -> dict[str, float]:
    found: list[tuple[float, int]] = []

    async def one(seed: int) -> None:
        rng, client = random.Random(seed), Client(port)
        await client.open()
        await asyncio.sleep(pause * rng.random())
        for _ in range(requests):
            found.append(await client.get(f"feature/{rng.randrange(d_sae)}"))
            await asyncio.sleep(pause * 2 * rng.random())

    await asyncio.gather(*(one(seed) for seed in range(clients)))
    return summary(found)


async def measure(port: int, layers: tuple[int, ...], clients: int, requests: int) -> dict[str, Any]:
    client, d_sae = Client(port), sum(layers)
    await client.open()
    first = {path: (await client.get(path))[0] for path in ("overview", "forest", "labels", "nulls")}
    found: dict[str, Any] = {"first_view_ms": {path: round(ms, 1) for path, ms in first.items()}}
    again = [await client.get(path) for path in ("overview", "forest", "labels", "nulls") for _ in range(5)]
    found["again"] = summary(again)
    rng = random.Random(0)
    for kind in ("feature", "family", "edge"):
        ids = [rng.randrange(layers[0], d_sae - layers[-1]) for _ in range(requests)]
        found[kind] = summary([await client.get(f"{kind}/{i}") for i in ids])
    words = ["the", "day", "river", "xyzzy", "in", "qu", "ing", "1"]
    for name, query in (("search", "search?n=50&q="), ("search_regex", "search?n=50&regex=1&q=%5Ba-c%5D")):
        found[name] = summary([await client.get(query + word) for word in words * 3])
    found[f"feature, {clients} clients at once"] = await many(port, clients, requests, 0, d_sae)
    found[f"feature, {clients} clients a second apart"] = await many(port, clients, 15, 1, d_sae)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=24_576)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--requests", type=int, default=50)
    args = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    layers = layers_of(args.features)
    server = multiprocessing.get_context("spawn").Process(
        target=run_server, args=(layers, args.tokens, theirs)
    )
    server.start()
    theirs.close()  # so that a server that fails is noticed
    about = ours.recv()
    found = asyncio.run(measure(about["port"], layers, args.clients, args.requests))
    assert server.pid is not None
    os.kill(server.pid, 15)
    memory = ours.recv()
    server.join()
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "machine": platform.machine()}
    print(
        json.dumps(
            {"features": args.features, **about, **found, "peak_memory_mb": round(memory), **machine},
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
