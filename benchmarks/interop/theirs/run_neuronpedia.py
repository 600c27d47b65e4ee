"""Makes objects of Neuronpedia's client from bulk files, and uploads them with that client to a site on loopback.

PYTHON_WITH_NEURONPEDIA -m benchmarks.interop.theirs.run_neuronpedia MODEL/LAYER-SET URL KEY [CHECKOUT]
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections import defaultdict
from contextlib import redirect_stdout
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

KINDS = {"features": "feature", "activations": "activation", "explanations": "explanation"}
HEADERS = {"release": "source_release", "model": "model", "sourceset": "source_set", "source": "source"}


def main(place: str, url: str, key: str, checkout: str = "") -> None:
    os.environ["NEURONPEDIA_API_KEY"] = key
    from neuronpedia.np_activation import Activation  # pyright: ignore[reportMissingImports]
    from neuronpedia.np_explanation import Explanation  # pyright: ignore[reportMissingImports]
    from neuronpedia.np_feature import Feature, Logit  # pyright: ignore[reportMissingImports]
    from neuronpedia.np_source_set import SourceSet  # pyright: ignore[reportMissingImports]
    from neuronpedia.requests.base_request import NPRequest  # pyright: ignore[reportMissingImports]

    NPRequest.BASE_URL = url
    lines = {part: list(read(Path(place) / part)) for part in KINDS}
    about: dict[str, dict[str, list[Any]]] = {part: defaultdict(list) for part in KINDS}
    for line in lines["activations"]:
        found = Activation.from_np_db_json(line | {"source": line["layer"]})
        about["activations"][line["index"]].append(found)
    for line in lines["explanations"]:
        found = Explanation.from_np_db_json(line | {"source": line["layer"]})
        about["explanations"][line["index"]].append(found)
    made = [
        Feature(
            modelId=line["modelId"],
            source=line["layer"],
            index=int(line["index"]),
            density=line["frac_nonzero"],
            top_logits=[Logit(*pair) for pair in zip(line["pos_str"], line["pos_values"], strict=True)],
            bottom_logits=[Logit(*pair) for pair in zip(line["neg_str"], line["neg_values"], strict=True)],
            explanations=about["explanations"][line["index"]],
            activations=about["activations"][line["index"]],
        )
        for line in lines["features"]
    ]
    with redirect_stdout(sys.stderr):
        source = SourceSet.new("theirs", made[0].modelId).get_source_for_layer_number(1)
        for start in range(0, len(made), 100):
            source.upload_batch(made[start : start + 100])
    models, wrong = database(Path(place), Path(checkout), lines) if checkout else (0, 0)
    sizes = {part: len(some) for part, some in lines.items()}
    print(json.dumps({**sizes, "models": models, "wrong": wrong}))


def read(folder: Path) -> Any:
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from map(json.loads, file)


def database(place: Path, checkout: Path, lines: dict[str, list[Any]]) -> tuple[int, int]:
    """How many lines its database's objects are made of, and how many have something that these do not."""
    sys.path.insert(0, str(checkout / "utils" / "neuronpedia-utils"))
    all_lines = [(kind, line) for part, kind in KINDS.items() for line in lines[part]]
    for name, kind in HEADERS.items():
        all_lines += [(kind, json.loads(line)) for line in (place / f"{name}.jsonl").read_text().splitlines()]
    wrong = 0
    for kind, line in all_lines:
        module = import_module(f"neuronpedia_utils.db_models.{kind}")
        model: Any = getattr(module, "".join(word.title() for word in kind.split("_")))
        try:
            made = model(**line)
            kinds = {field.name: type(getattr(made, field.name)) for field in fields(model)}
            wrong += any(kinds[name] is not type(value) for name, value in line.items())
        except TypeError:
            wrong += 1
    return len(all_lines), wrong


if __name__ == "__main__":
    main(*sys.argv[1:])
