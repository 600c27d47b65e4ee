"""What a column says of the edges of a learned and of an inferred forest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from explore_cases import World
from saeforest.explore import Explorer
from saeforest.explore.api import Api


@pytest.mark.parametrize(
    ("origin", "gated", "expected"),
    [
        ("learned", True, {"gate": {"coverage", "p_child", "s_res", "rank_parent", "sibling_overlap"}}),
        ("learned", False, {}),
        ("inferred by coverage", False, {"choice": {"ungated", "lift", "coverage", "s_res", "rank_parent"}}),
    ],
)
def test_what_forces_the_values_of_columns(
    origin: str, gated: bool, expected: dict[str, set[str]], world: World, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert world.index.about.gated == world.sae.gated
    index = replace(world.index, about=replace(world.index.about, gated=gated))
    api = Api(Explorer(index, world.sae.forest, tokenizer, origin=origin))
    columns = api.get(f"edge/{int(world.sae.forest.edges[1][0])}")["columns"]
    about = api.get("forest")["about"]
    for column, same in zip(columns, about, strict=True):
        assert column["mechanical"] == (column["forced_by"] is not None)
        assert {key: column[key] for key in same} == same
    kinds = {column["forced_by"] for column in columns} - {None}
    assert {by: {c["name"] for c in columns if c["forced_by"] == by} for by in kinds} == expected
    forced = {column["name"]: column["forced_by"] for column in columns}
    beats = api.get("overview")["beats"]
    assert beats
    assert all(beat["forced_by"] == forced[beat["column"]] for beat in beats)


def test_columns_say_which_edges_they_are_defined_on(
    world: World, tokenizer: PreTrainedTokenizerFast
) -> None:
    index, edges = world.index, world.sae.forest.edges[1]
    api = Api(Explorer(index, world.sae.forest, tokenizer))
    overview = api.get("overview")
    counted = {beat["column"]: beat["n"] for beat in overview["beats"]}
    defined = {about["name"]: about["defined"] for about in api.get("forest")["about"]}
    assert overview["min_count"] == 20
    frequent = "the child fires 20 times or more"
    assert defined["s_res"] == f"{frequent}, but not on every token"
    assert defined["ungated"].startswith(frequent)
    assert f"at least once in {index.about.n_detected:,} tokens" in defined["ungated"]
    fired = index.n_fired[edges]
    assert counted["s_res"] == int(((fired >= 20) & (fired < index.about.n_tokens)).sum())
    assert counted["coverage"] == int((fired > 0).sum())
    assert counted["cos_decoder"] == overview["n_edges"] == len(edges)
    assert defined["cos_decoder"] == ""
