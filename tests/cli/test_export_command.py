"""`saeforest figure` and `saeforest export`, end to end on a tiny run, and the lines for what cannot be done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from neuronpedia_cases import KEY, Site
from saeforest.run_folder import RunFolder

from .said import Call


def _to_neuronpedia(a_run: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files, a dry run, and the upload, which is not repeated."""
    names = ("--neuronpedia.set", "tree", "--neuronpedia.features", *range(9))
    command = ("export", "neuronpedia", a_run, "-o", "np", "--json", *names)
    said = call(*command)
    assert said.status == 0, said.err
    written = json.loads(said.out)
    assert (written["model"], written["source"]) == ("llama", "1-tree")
    assert written["features"] == 9
    monkeypatch.delenv("NEURONPEDIA_API_KEY", raising=False)
    assert "set NEURONPEDIA_API_KEY" in call(*command, "--neuronpedia.upload").err
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    with Site() as site:
        there = ("--neuronpedia.api", site.url, "--neuronpedia.new-model", 2)
        plan = json.loads(call(*command, *there, "--neuronpedia.dry-run").out)["plan"]
        assert plan["features"] + plan["without"] == 9
        assert site.requests == []
        sent = json.loads(call(*command, *there, "--neuronpedia.upload").out)
        assert sent["sent"] == plan["features"] == len(site.features["llama", "1-tree"])
        again = call("export", "neuronpedia", a_run, "-o", "np", *names, *there, "--neuronpedia.upload")
        assert f"uploaded {plan['features']} features, {plan['features']} of them before" in again.out
    assert "was uploaded" in call(*command, "--force").err


def test_figures_and_exports_of_a_run(a_run: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    said = call("export", "html", a_run, "--root", 0, "-o", "family.html", "--json")
    assert said.status == 0, said.err
    assert "has no index yet; making it, once" in said.err
    file = json.loads(said.out)
    assert (file["file"], file["files"]) == ("family.html", 1)
    assert file["bytes"] == Path("family.html").stat().st_size < 1_000_000
    forest = RunFolder(a_run).load()[1].forest
    assert file["features"] == len(list(forest.subtree(0)))
    assert call("export", "html", a_run, "--root", 0, "-o", "family.html").status == 2
    again = call("export", "html", a_run, "--root", 0, "-o", "family.html", "--force")
    assert again.status == 0
    assert "open family.html in a browser" in again.out

    said = call("export", "html", a_run, "-o", "pages", "--json")
    assert said.status == 0, said.err
    folder = json.loads(said.out)
    assert (folder["folder"], folder["features"]) == ("pages", forest.d_sae)
    assert folder["files"] == len([p for p in Path("pages").rglob("*") if p.is_file()])

    said = call("export", "delphi", a_run, "-o", "latents", "--tokens", 320, "--delphi.splits", 2, "--json")
    assert said.status == 0, said.err
    cache = json.loads(said.out)
    assert (cache["folder"], cache["hookpoint"], cache["splits"]) == ("latents", "layers.1", 2)
    assert cache["bytes"] == sum(p.stat().st_size for p in Path("latents").rglob("*") if p.is_file())
    assert call("export", "delphi", a_run, "-o", "latents").status == 2
    said = call("export", "delphi", a_run, "-o", "latents", "--tokens", 320, "--force")
    assert said.status == 0
    assert "LatentDataset(raw_dir='latents/latents'" in said.out

    _to_neuronpedia(a_run, call, monkeypatch)
    drawn = call("figure", a_run, 0, "--json")
    assert drawn.status == 0, drawn.err
    image = json.loads(drawn.out)
    assert (image["file"], image["kind"], image["feature"]) == ("0-family.svg", "family", 0)
    before = Path("0-family.svg").read_bytes()
    assert image["bytes"] == len(before)
    assert call("figure", a_run, 0).status == 2
    assert call("figure", a_run, 0, "--force").status == 0
    assert Path("0-family.svg").read_bytes() == before
    for args, begins in ((("-o", "f.pdf"), b"%PDF"), (("--kind", "geometry", "-o", "g.png"), b"\x89PNG")):
        said = call("figure", a_run, 0, *args)
        assert (said.status, said.out) == (0, f"Figure: {args[-1]}\n"), said.err
        assert Path(args[-1]).read_bytes().startswith(begins)


def test_weights_of_a_run_and_of_an_sae(finished_run: Path, call: Call, fails: Callable[..., str]) -> None:
    assert "has no counterpart in sparsify" in fails("export", "sparsify", finished_run, "-o", "x")
    assert "import saeforest.interop.saelens" in fails("export", "saelens", finished_run / "sae", "-o", "x")
    assert "is no run" in fails("export", "sparsify", finished_run / "sae", "-o", "x", "--sae", "tree")
    assert "no such folder" in fails("export", "sparsify", "nowhere", "-o", "x")
    said = call("export", "tree-sae", finished_run, "-o", "theirs", "--json")
    assert said.status == 0, said.err
    written = json.loads(said.out)
    assert (written["folder"], written["type"]) == ("theirs", "tree")
    again = call("export", "tree-sae", "theirs", "-o", "again")
    assert again.status == 0
    assert "112 features" in again.out
    assert Path("again/sae.safetensors").read_bytes() == Path("theirs/sae.safetensors").read_bytes()


def test_what_cannot_be_exported_or_drawn(finished_run: Path, fails: Callable[..., str]) -> None:
    assert "expected one of html, delphi, neuronpedia, saebench, saelens, sparsify, tree-sae" in fails(
        "export", "pdf", finished_run, "-o", "x"
    )
    assert "--root: an option of html, not of delphi" in fails(
        "export", "delphi", finished_run, "-o", "x", "--root", 1
    )
    assert "--delphi: an option of delphi, not of html" in fails(
        "export", "html", finished_run, "-o", "x", "--delphi.splits", 3
    )
    assert "--tokens 0: expected 1 or more" in fails(
        "export", "delphi", finished_run, "-o", "x", "--tokens", 0
    )
    assert "splits = 0: expected 1 to 112" in fails(
        "export", "delphi", finished_run, "-o", "x", "--delphi.splits", 0
    )
    assert "give --root FEATURE" in fails("export", "html", finished_run, "-o", "x.html")
    assert "feature 112: expected 0 to 111" in fails(
        "export", "html", finished_run, "--root", 112, "-o", "x.html"
    )
    assert "inside the run" in fails("export", "html", finished_run, "-o", finished_run / "pages")
    assert "a folder; expected the name of a file" in fails(
        "export", "html", finished_run, "--root", 1, "-o", "."
    )
    assert "no config.yaml" in fails("export", "html", "nowhere", "-o", "x")
    assert "feature x: expected 0 to 111" in fails("figure", finished_run, "x", "-o", "y.svg")
    assert "ends with one of .svg, .png, .pdf" in fails("figure", finished_run, 1, "-o", "x.jpg")
    assert "--depth 0: expected 1 or more" in fails("figure", finished_run, 1, "--depth", 0)
    assert "family, geometry" in fails("figure", finished_run, 1, "--kind", "tree")
    assert not (finished_run / "index").exists()
