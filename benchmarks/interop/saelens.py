"""SAELens: our SAEs as it loads them, with the plug-in and without; and SAEs of all its architectures, loaded here."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.peers.environments import RECIPES, ROOT
from safetensors.torch import load_file

import saeforest
from saeforest.interop.saelens_flat import write_saelens
from saeforest.release.push import push
from saeforest.run_folder import RunFolder
from saeforest.saes import HSAE, SAE, save_sae

from .a_run import make_run
from .check import OURS, Row, Run, tool
from .compare import BOUND, share, write_expected
from .systems import every_system

_NORMS = ("layer_norm", "none", "constant_norm_rescale")
_REPO = "saeforest/everything"
_COMMIT = "0" * 40


def check(folder: Path, run: Run) -> list[Row]:
    return [
        *_without(folder / "plain", run),
        *_with(folder / "plugin", run),
        *_theirs(folder / "theirs", run),
        _pushed(folder / "pushed", run),
    ]


def _without(folder: Path, run: Run) -> list[Row]:
    """Flat SAEs and the levels of HSAEs, exported."""
    names: dict[str, list[Path]] = {}
    for norm in _NORMS:
        for name, sae in every_system(norm).items():
            if name.startswith("tree") or name == "expert_hsae":
                continue
            out = folder / f"{name}-{norm}"
            write_saelens(sae, out)
            for place in sorted({path.parent for path in out.rglob("sae_weights.safetensors")}):
                _expected(sae, place)
                names.setdefault(name, []).append(place)
    found = run("run_saelens", "plain", *(place for places in names.values() for place in places))
    return [
        _row(f"our {name}, exported, read without the plug-in", [found[str(p)] for p in places])
        for name, places in names.items()
    ]


def _expected(sae: SAE, place: Path) -> None:
    """Ours, or of an HSAE the level in this folder."""
    write_expected(saeforest.load(place) if isinstance(sae, HSAE) else sae, place)


def _with(folder: Path, run: Run) -> list[Row]:
    """Folders as they are, by both loaders, from disk and from a repository in the Hub's cache."""
    names: dict[str, list[Path]] = {}
    snapshot = folder / "hub" / f"models--{_REPO.replace('/', '--')}" / "snapshots" / _COMMIT
    for norm in _NORMS:
        for name, sae in every_system(norm).items():
            if sae.config.architecture in ("topk", "jumprelu", "matching_pursuit"):
                continue
            place = folder / "disk" / f"{name}-{norm}"
            save_sae(sae, place)
            shutil.copytree(place, snapshot / place.name)
            write_expected(sae, place)
            names.setdefault(name, []).append(place)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(_COMMIT)
    places = [place for some in names.values() for place in some]
    found = run("run_saelens", "plugin", folder / "hub", _REPO, *places)
    rows = []
    for name, some in names.items():
        row = _row(
            f"our {name}, read with the plug-in", [d for p in some for d in found[str(p)]["differences"]]
        )
        exact = all(found[str(p)]["exact"] for p in some)
        said = "forest exact in bfloat16; saved by it and read here: equal bits"
        again = all(
            torch.equal(t, saeforest.load(p / "again").tensors()[key])
            for p in some
            for key, t in _saved(p).tensors().items()
        )
        rows.append(Row(row.where, row.codes, row.reconstructions, row.ok and exact and again, said))
    return rows


def _saved(place: Path) -> SAE:
    from saeforest.saes.files import CFG, WEIGHTS

    alone = place / "alone"
    alone.mkdir(exist_ok=True)
    for file in (CFG, WEIGHTS):
        shutil.copy(place / file, alone / file)
    return saeforest.load(alone)


def _theirs(folder: Path, run: Run) -> list[Row]:
    """What SAELens built and saved, by `theirs/make_saelens.py`."""
    run("make_saelens", folder)
    kinds: dict[str, list[tuple[float, float]]] = {}
    for place in sorted(path.parent for path in folder.rglob("expected.safetensors")):
        expected = load_file(place / "expected.safetensors")
        sae = saeforest.load(place)
        with torch.no_grad():
            code, stats = sae.encode_with_stats(expected["x"])
            x_hat = sae.decode(code, stats)
        kinds.setdefault(place.name.split("-")[0], []).append(
            (share(code.dense(sae.d_sae), expected["f"]), share(x_hat, expected["x_hat"]))
        )
    return [_row(f"{kind}, saved by it", found, f"{len(found)} SAEs") for kind, found in kinds.items()]


def _pushed(folder: Path, run: Run) -> Row:
    """A run that was trained and pushed, as both load it from the Hub: one on loopback, with the Hub's own client."""
    sys.path.insert(0, str(ROOT / "tests"))
    from hub_cases import WRITER, point_client, serving  # pyright: ignore[reportMissingImports]

    trained = make_run(folder)
    sae = RunFolder(trained).load()[1]
    write_expected(sae, folder / "expected")
    with serving() as hub, pytest.MonkeyPatch.context() as patch:
        point_client(patch, hub.url, folder / "ours")
        done = push(trained, "org/demo")
        ours = saeforest.load("org/demo")
        found = run(
            "run_saelens", "pushed", hub.url, WRITER, folder / "cache", "org/demo", folder / "expected"
        )
    same = all(torch.equal(t, ours.tensors()[name]) for name, t in sae.tensors().items())
    forest = found["parent"] == sae.parent.tolist()
    ok = done.private and same and forest and max(max(pair) for pair in found["differences"]) < BOUND
    codes, reconstructions = (max(pair[i] for pair in found["differences"]) for i in (0, 1))
    said = "from_pretrained, both loaders, private; saeforest.load: equal bits; the forest is the run's"
    return Row("a run, trained and pushed", codes, reconstructions, ok, said)


def _row(where: str, found: list, said: str = "") -> Row:
    codes, reconstructions = (max(pair[i] for pair in found) for i in (0, 1))
    return Row(where, codes, reconstructions, max(codes, reconstructions) < BOUND, said)


SAELENS = tool("sae-lens", RECIPES["sae-lens"], check, OURS)
