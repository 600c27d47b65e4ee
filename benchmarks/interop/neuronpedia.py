"""Neuronpedia: its own client's objects of our files, and its own upload of them beside ours, to a site on loopback."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.peers.environments import ROOT, Recipe

from saeforest.interop.neuronpedia.config import NeuronpediaConfig, UploadConfig
from saeforest.interop.neuronpedia.files import export_neuronpedia
from saeforest.interop.neuronpedia.upload import upload

from .a_run import make_run
from .check import Row, Run, tool

#: Folder of a checkout of github.com/hijohnnylin/neuronpedia, whose db_models are not on PyPI.
SOURCE = "NEURONPEDIA_SOURCE"


def check(folder: Path, run: Run) -> list[Row]:
    sys.path.insert(0, str(ROOT / "tests"))
    from neuronpedia_cases import KEY, Site  # pyright: ignore[reportMissingImports]

    trained = make_run(folder)
    out = folder / "out"
    names = NeuronpediaConfig(model="tiny-model", set="ours")
    done = export_neuronpedia(trained, out, names)
    place = out / "tiny-model" / done.about["source"]
    with Site() as site:
        site.models["tiny-model"] = 2
        sent = upload(out, KEY, UploadConfig(site.url))
        found = run("run_neuronpedia", place, site.url, KEY, os.environ.get(SOURCE, ""))
        ours, theirs = (site.features["tiny-model", f"1-{name}"] for name in ("ours", "theirs"))
    same = ours == theirs
    rows = [
        Row(
            "objects of its client from our files",
            None,
            None,
            ok=found["features"] == done.about["features"]
            and found["activations"] == done.about["activations"],
            said=f"{found['features']} features, {found['activations']:,} activations, "
            f"{found['explanations']} explanations",
        ),
        Row(
            "what its client uploads of these objects, beside what we upload",
            None,
            None,
            ok=same and len(ours) == sent.sent,
            said=f"{len(ours)} features, the same requests" if same else "other requests",
        ),
    ]
    if found["models"]:
        said = f"{found['models']:,} lines make the objects of its database, of the site's source"
        rows.append(
            Row("its db_models from every line of our files", None, None, ok=not found["wrong"], said=said)
        )
    return rows


NEURONPEDIA = tool("neuronpedia", Recipe("1.2.1"), check)
