"""What a column says of the edges of a learned and of an inferred forest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from explore_cases import World
from saeforest.explore import Explorer
from saeforest.explore.api import Api
from saeforest.explore.api.features import column_values


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


def test_a_fraction_is_within_its_bounds(world: World) -> None:
    """1 minus a divergence may be a little below 0."""
    values = torch.full((world.sae.d_sae,), torch.nan)
    values[:3] = torch.tensor([-1.8e-15, 0.5, 1 + 1e-6])
    names = ("tokens_alike", "cos_decoder")
    index = replace(world.index, columns={**world.index.columns, **dict.fromkeys(names, values)})
    alike, cosine = (column_values(index, a) for a in index.about.columns if a.name in names)
    assert alike[:3].tolist() == [0, 0.5, 1]
    assert bool(alike[3:].isnan().all())
    assert cosine[:3].tolist() == values[:3].tolist()
