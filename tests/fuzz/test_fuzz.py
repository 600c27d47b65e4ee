"""Damaged files of every format: each is one line that says so, or read as it was, or noticed by its checksum.

`SAEFOREST_FUZZ_CASES` is the number of cases over all formats (`make fuzz`: 10,000). A case that fails is shrunk, and
shown as the file and the mutation: `Flip(place=31, bit=3)`.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from mutations import DEEP, Changed, Header, Json, Mutation, Rename, Scalar, Unlisted, Value, Yaml, unsigned
from safetensors.torch import save_file
from targets import ANEW, TARGETS, Target, about_forest, unfinished_index

from everything_cases import CHECKPOINT
from saeforest import out_of_memory
from saeforest.activations.plan import Entry, Plan
from saeforest.errors import InputError
from saeforest.files import write_json
from saeforest.verify import verify
from saeforest.worlds.run import Kept

#: How many cases each format gets.
CASES = max(int(os.environ.get("SAEFOREST_FUZZ_CASES", "400")) // len(TARGETS), 1)
# Seconds for one file of a few kilobytes; a loaded machine takes a tenth of it.
PATIENCE = 20
_LONGEST_LINE = 2_000
_ROOM = 1 << 28
#: What came of the cases, by format.
counts: dict[str, Counter[str]] = {}


class Hang(BaseException):
    """A file that takes too long. Not an Exception: nobody may catch it by chance."""


@pytest.fixture(scope="session")
def root(
    everything: Path, tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A copy of one of each file, for this module alone; every case puts back what it damages."""
    root = tmp_path_factory.mktemp("fuzz") / "root"
    shutil.copytree(everything, root, ignore=shutil.ignore_patterns("figures", "report*"))
    shutil.copytree(tiny_model, root / "model")
    (root / "fingerprint.json").write_text(
        json.dumps(json.loads((root / CHECKPOINT / "state.json").read_text())["fingerprint"])
    )
    (root / "about_forest.json").write_text(json.dumps(about_forest(root)))
    _unfinished(root)
    _texts(root / "texts", tiny_text)
    _released(root / "released")
    _saelens(root / "saelens")
    _gemma(root / "gemma")
    return root


def _unfinished(root: Path) -> None:
    """Work that was stopped on its way: a harvest, an index, a synthetic run."""
    (root / "unfinished").mkdir()
    shard = json.loads((root / "store/activations.json").read_text())["shards"][0]
    plan = Plan(about={"site": "x"}, settings={}, text="t", windows=shard["windows"], shard_windows=8)
    write_json(root / "unfinished/unfinished.json", plan.model_dump())
    entry = Entry(
        file=shard["file"], rows=shard["rows"], windows=(0, shard["windows"]), file_checksum=shard["checksum"],
        bytes=(root / "store" / shard["file"]).stat().st_size, plan=plan.digest(), seconds={"lm": 1.5},
    )  # fmt: skip
    write_json(root / "unfinished/shard-00000.json", entry.model_dump())
    shutil.copy(root / "store/shard-00000.safetensors", root / "unfinished")
    (root / "counted").mkdir()
    shutil.copy(root / "two/index/tree/tokens.safetensors", root / "counted")
    counts, index = unfinished_index(root)
    index.begin(counts)
    counts.add(torch.randn(90, counts.sae.d_in), torch.arange(90))
    index._windows = 3
    index._keep()
    asked = {"generator": "a", "config": {"steps": 3}}
    (root / "asked.json").write_text(json.dumps(asked))
    kept = Kept(root / "results/scores.json", asked)
    kept.put(0, "topk", {"topk": {"fve": 0.5, "l0": None}})


def _texts(folder: Path, tiny_text: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    lines = (tiny_text / "more.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    texts = [json.loads(line)["text"][:200] for line in lines]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "a.txt").write_text("\n\n".join(texts), encoding="utf-8")
    labels = ["a", "b"] * 3
    rows = [f'"{text}",{label}\n' for text, label in zip(texts, labels, strict=True)]
    (folder / "labeled.csv").write_text("".join(["text,label\n", *rows]), encoding="utf-8")
    shutil.copy(folder / "labeled.csv", folder / "a.csv")
    pairs = zip(texts, labels, strict=True)
    (folder / "labeled.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs)
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / "a.parquet")


def _released(folder: Path) -> None:
    folder.mkdir()
    config = {"type": "tree", "features_per_layer": [3, 5], "k_per_layer": [1, 2], "hook_name": "blocks.0"}
    (folder / "config.json").write_text(json.dumps(config))
    rng = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=rng) for name, shape in
               (("encoder.weight", (8, 4)), ("decoder.weight", (4, 8)), ("b_dec", (4,)))}  # fmt: skip
    parents = {
        "parent_index_0": torch.zeros(3, dtype=torch.int64),
        "parent_index_1": torch.tensor([0, 1, 2, 3, 3]),
    }
    save_file({**tensors, **parents}, folder / "sae.safetensors")


def _saelens(folder: Path) -> None:
    folder.mkdir()
    details = {"k": 2.5, "matryoshka_widths": [3, 8]}
    cfg = {
        "architecture": "jumprelu", "d_in": 4, "d_sae": 8, "dtype": "float32", "apply_b_dec_to_input": False,
        "normalize_activations": "layer_norm", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "model_name": "gpt2-small", "context_size": 128,
                     "training_architecture": "matryoshka_batchtopk", "training_architecture_details": details},
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file(_jumprelu(), folder / "sae_weights.safetensors")


def _gemma(folder: Path) -> None:
    folder.mkdir()
    np.savez(folder / "params.npz", allow_pickle=False, **{k: v.numpy() for k, v in _jumprelu().items()})


def _jumprelu() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (4, 8), "W_dec": (8, 4), "b_enc": (8,), "b_dec": (4,), "threshold": (8,)}
    return {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def right(root: Path) -> Callable[[Target], tuple[Any, int]]:
    """What a target reads from files that are whole, and the memory it takes. Read twice: some of it is kept."""
    known: dict[str, tuple[Any, int]] = {}

    def of(target: Target) -> tuple[Any, int]:
        if target.name not in known:
            first = target.read(root)
            with peak_memory() as peak:
                assert target.read(root) == first
            known[target.name] = first, peak()
        return known[target.name]

    return of


@contextmanager
def patience() -> Iterator[None]:
    def stop(*args: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Yields a function that tells the most memory that this process has held since, in bytes."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak() -> int:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
        return 0

    yield peak


@contextmanager
def bounded() -> Iterator[None]:
    """Within, an allocation beyond reason fails at once, instead of taking the machine down."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + (1 << 33)
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@contextmanager
def damaged(root: Path, target: Target, mutation: Mutation) -> Iterator[bytes]:
    """Within, the target's file is what the mutation makes of it."""
    path = root / target.file
    before = {path: path.read_bytes()}
    after = mutation(before[path])
    if isinstance(mutation, Unlisted) and target.manifest:
        manifest = root / target.manifest
        before[manifest] = manifest.read_bytes()
        manifest.write_text(json.dumps(unsigned(json.loads(before[manifest]))))
    path.write_bytes(after)
    rng = torch.get_rng_state()
    try:
        yield after
    finally:
        torch.set_rng_state(rng)
        for file, data in before.items():
            file.write_bytes(data)


def one_line(error: InputError, root: Path) -> str:
    message = str(error)
    assert message, "an empty message"
    assert "\n" not in message
    assert len(message) < _LONGEST_LINE
    assert str(root) in message, "no file is named"
    return "one line"


def outcome(
    root: Path, target: Target, mutation: Mutation, expected: Any, normal: int, told: Callable[[], str]
) -> str:
    with damaged(root, target, mutation) as after:
        found = None
        with peak_memory() as peak, patience(), bounded():
            try:
                found = target.read(root)
            except InputError as error:
                result = one_line(error, root)
            except (MemoryError, RuntimeError, ValueError) as error:
                if out_of_memory.explained(error) is None:
                    raise
                result = "one line: not enough memory"
            else:
                result = "same" if found == expected else "different"
            grown = peak()
        assert grown <= 2 * normal + _ROOM, (
            f"{grown >> 20} MiB of memory for a file that takes {normal >> 20}"
        )
        said = told()
        edited = isinstance(mutation, Unlisted | Yaml)
        edited = edited or (isinstance(mutation, Json | Scalar) and mutation.edited)
        # Damage that takes the line with the checksum away looks like a user who did so on purpose.
        edited = edited or (target.name == "config.yaml" and not after.startswith(b"# checksum: "))
        anew = any(word in said for word in ("skipping", "set aside", "inferred again"))
        if result == "different" and (anew or found == ANEW):
            result = "noticed, and made anew"
        elif result == "different":
            assert edited or target.may_differ, f"read as something else without a word; said {said!r}"
            result = (
                "different: edited on purpose" if not target.may_differ else "different: " + target.may_differ
            )
        if target.verified:
            with patience():
                sound = all(finding.sound for finding in verify(root / target.verified))
            assert not (sound and result.startswith("one line") and not edited), "verify calls it sound"
        return result


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_damaged_file(
    target: Target,
    root: Path,
    right: Callable[[Target], tuple[Any, int]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    expected, normal = right(target)
    seen = counts.setdefault(target.name, Counter())

    @settings(max_examples=CASES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(target.mutations)
    def case(mutation: Mutation) -> None:
        note(f"{target.file}: {mutation!r}")
        capfd.readouterr()
        seen[outcome(root, target, mutation, expected, normal, lambda: capfd.readouterr().err)] += 1

    case()


# The fuzzer itself


@pytest.mark.parametrize(
    ("name", "mutation", "expected"),
    [
        ("cfg.json", Json(Value(0, DEEP), edited=True), "one line"),
        ("cfg.json", Json(Rename(0, None), edited=False), "one line"),
        ("sae_weights", Unlisted(Changed(0, "nan")), "one line"),
        ("sae_weights", Changed(0, "negative"), "one line"),
        ("sae_weights", Unlisted(Changed(0, "negative")), "different: edited on purpose"),
        ("shard", Unlisted(Header(Value(1, 10**18))), "one line"),
        ("recovery.json", Json(Value(3, "x"), edited=False), "one line"),
    ],
)
def test_outcomes_are_told_apart(
    name: str,
    mutation: Mutation,
    expected: str,
    root: Path,
    right: Callable[[Target], tuple[Any, int]],
) -> None:
    target = next(target for target in TARGETS if target.name == name)
    assert outcome(root, target, mutation, *right(target), lambda: "") == expected


def test_a_reader_that_fails_is_caught(root: Path) -> None:
    """A traceback, a hang, too much memory, another result: each of them would end a case."""
    whole = Target("t", "run/sae/cfg.json", TARGETS[1].mutations, lambda root: 1)
    kept: list[torch.Tensor] = []

    def wrong(read: Callable[[Path], Any]) -> Target:
        return Target("t", whole.file, whole.mutations, read)

    def hang(root: Path) -> None:
        while True:
            pass

    def hungry(root: Path) -> int:
        kept.append(torch.ones(1 << 28, dtype=torch.int32))
        return 1

    flip = Json(Rename(0, "x"), edited=False)
    assert outcome(root, whole, flip, 1, 1 << 40, lambda: "") == "same"
    with pytest.raises(AssertionError, match="without a word"):
        outcome(root, whole, flip, 2, 1 << 40, lambda: "")
    with pytest.raises(ZeroDivisionError):
        outcome(root, wrong(lambda root: 1 / 0), flip, 1, 1 << 40, lambda: "")
    with pytest.raises(AssertionError, match="MiB of memory"):
        outcome(root, wrong(hungry), flip, 1, 1, lambda: "")
    kept.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("test_fuzz.PATIENCE", 0.05)
        with pytest.raises(Hang):
            outcome(root, wrong(hang), flip, 1, 1 << 40, lambda: "")


def test_a_case_puts_everything_back(root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for target in TARGETS:
        with damaged(root, target, Unlisted(lambda data: b"")):
            assert (root / target.file).read_bytes() == b""
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """Shown where more cases than usual were asked for."""
    assert all(sum(found.values()) for found in counts.values())
    if "SAEFOREST_FUZZ_CASES" in os.environ:
        lines = [f"{name:30} {sum(n.values()):6,}  {dict(sorted(n.items()))}" for name, n in counts.items()]
        every = sum(counts.values(), Counter[str]())
        with capsys.disabled():
            print("", *lines, f"all {sum(every.values()):,}: {dict(every)}", sep="\n")
