"""The documented contract of the API: the schema is that of the classes, answers fit it, the page names every path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from transformers import PreTrainedTokenizerFast

from explore_cases import World
from saeforest.explore import Explorer
from saeforest.explore.answers import ANSWERS
from saeforest.explore.api import BODIES, Api
from saeforest.explore.api.compare import Opened
from saeforest.explore.api.schema import FILES, schema, text
from saeforest.saes import TreeSAE

DOCS = Path(__file__).parents[3] / "docs"


def test_the_schema_is_up_to_date() -> None:
    kept = (DOCS / "explorer-api.schema.json").read_text(encoding="utf-8")
    assert kept == text(), "run `python -m saeforest.explore.api.schema docs/explorer-api.schema.json`"
    Draft202012Validator.check_schema(schema())


def test_the_page_names_every_path() -> None:
    page = (DOCS / "explorer-api.md").read_text(encoding="utf-8")
    for path in (*ANSWERS, *FILES):
        assert f"`{path.removesuffix(' (without other)')}" in page, path


@pytest.fixture(scope="module")
def api(tokenizer: PreTrainedTokenizerFast) -> Api:
    world = World(TreeSAE, documents=7)
    again = Api(Explorer(world.index, world.sae.forest, tokenizer), sae=world.sae)
    others = {"again": lambda: Opened(world.sae, world.sae.forest, again)}
    return Api(Explorer(world.index, world.sae.forest, tokenizer), sae=world.sae, others=others)


def fits(answer: Any, kind: str) -> None:
    whole = schema()
    Draft202012Validator({"$defs": whole["$defs"], **whole["answers"][kind]}).validate(
        json.loads(json.dumps(answer))
    )


OVERALL = ["overview", "forest", "labels", "nulls", "annotations", "blind/tally"]


@pytest.mark.parametrize("path", [*OVERALL, "feature/3", "feature/12", "edge/12", "family/2", "tree-data/2"])
def test_answers_fit_the_schema(path: str, api: Api) -> None:
    name, _, feature = path.partition("/")
    kind = f"GET {path}"
    if feature.isdecimal():
        kind = f"GET {name}/{'CHILD' if name == 'edge' else 'ID'}"
    fits(api.get(path), kind)


def test_answers_to_questions_and_writing_fit_too(api: Api) -> None:
    fits(api.get("search", {"q": "a"}), "GET search")
    fits(api.get("compare"), "GET compare (without other)")
    fits(api.get("compare", {"other": "again"}), "GET compare")
    fits(api.get("compare/feature", {"other": "again", "id": "3"}), "GET compare/feature")
    fits(api.put("annotations/3", {"note": "x"}), "PUT annotations/ID")
    child = int(api.explorer.forest.edges[1][0])
    fits(api.put(f"rating/{child}", {"rating": "yes"}), "PUT rating/CHILD")
    assert set(BODIES) == {path for path in ANSWERS if not path.startswith("GET ")}
