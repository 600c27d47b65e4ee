"""What the terminal shows of an index and a forest made by hand."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from explore_cases import (
    FOREST,
    ROOTS,
    World,
    hand_index,
    made_index,
    text_tokens,
)
from report_cases import ALONE, TREE, make_run, record
from saeforest.errors import InputError
from saeforest.explore import Explorer, Index, show_families, show_feature
from saeforest.explore.api import Api
from saeforest.explore.views.nulls import nulls_line
from saeforest.explore.views.terminal import percent
from saeforest.measures import Record
from saeforest.run_folder import RunFolder
from saeforest.structure.forest import Forest

HOSTILE = "x\x1b[31mred\x1b[0m\r\n\t\x07[bold]b[/] \u202edlrow\x9b:smile: [/red]\x7f\u2028z"


def printed(
    show: Callable[..., None],
    index: Index,
    forest: Forest,
    tokenizer: PreTrainedTokenizerFast,
    *args: int,
    width: int = 100,
    **options: Any,
) -> str:
    file = io.StringIO()
    show(Console(file=file, width=width, **options), Explorer(index, forest, tokenizer), *args)
    return file.getvalue()


def test_families_in_the_terminal(tokenizer: PreTrainedTokenizerFast) -> None:
    out = printed(show_families, hand_index(), FOREST, tokenizer)
    assert re.search(
        "^9 parent-child edges, learned; in 9 of them the child fires 20 times or more$", out, re.M
    )
    below = FOREST.d_sae - FOREST.layer_sizes[0]
    assert f"\n{9 / below:.0%} of the features below the first layer have a parent\n" in out
    assert re.search(r"^ 0 +3.0%  3 children  a$", out, re.M)
    assert re.search(r"── +3 +3.0%  P\(c\|p\) 1.00  S_res +0.50  2 children  d$", out, re.M)
    assert "100% " in out
    assert "abc«d»efghij" in out
    assert "a high score does not show that the hierarchy was learned" in " ".join(out.split())
    below = printed(
        show_families, hand_index(cos_child=[0.9] * 12, cos_parent=[0.5] * 10 + [0.9, 0.9]), FOREST, tokenizer
    )
    assert re.search(r"^ 3 +3.0%  under 0  2 children  d$", below, re.M)
    assert max(map(cell_len, out.splitlines())) <= 100


def test_no_family(tokenizer: PreTrainedTokenizerFast) -> None:
    out = printed(show_families, hand_index(rank_parent=[0] * 12), FOREST, tokenizer)
    assert "No family qualifies to be shown" in out
    flat = printed(show_families, hand_index(), Forest(torch.full((12,), -1), (12,)), tokenizer)
    assert "No families: every feature is a root." in flat


def test_a_feature_with_its_path_and_its_children(tokenizer: PreTrainedTokenizerFast) -> None:
    index = hand_index(n_fired=[50, 0, 0, 40, 30, 0, 0, 0, 0, 0, 6, 0], rank_parent=[0] * 4 + [7] + [0] * 7)
    out = printed(show_feature, index, FOREST, tokenizer, 3)
    ids = [int(m) for m in re.findall(r"(?:^|── ) *(\d+) ", out, re.M)]
    assert ids == [0, 3, 10]
    assert "P(c|p) 0.75" in out
    assert "+ 1 child that never fired here" in out
    assert re.search(r"10 +0.60%  P\(c\|p\) 0.75  S_res  - ", out)
    below_root = printed(show_feature, index, FOREST, tokenizer, 0)
    assert "+ 1 child that never fired here" in below_root
    assert re.search(r"4 +3.0%  P\(c\|p\) 0.60  S_res +0.50  e$", below_root, re.M)


def test_no_mark_judges_an_edge(tokenizer: PreTrainedTokenizerFast) -> None:
    """The paper's criterion is met by a tree that was never trained: the terminal shows no verdict by it."""
    for ranks in ([1] * 12, [7] * 12):
        index = hand_index(rank_child=ranks, rank_parent=ranks)
        for out in (
            printed(show_families, index, FOREST, tokenizer),
            printed(show_feature, index, FOREST, tokenizer, 0),
        ):
            assert not re.search("[✓✗]|pass", out)


def test_each_number_of_an_edge_has_its_place_among_null_pairs(
    world: World, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Those that the explorer's API gives, by the same columns."""
    forest = world.sae.forest
    api, placed = Api(Explorer(world.index, forest, tokenizer)), 0
    for parent in forest.edges[0].unique().tolist():
        out = printed(show_feature, world.index, forest, tokenizer, parent, width=120)
        for edge in Explorer(world.index, forest, tokenizer).feature(parent).children:
            columns = {c["name"]: c for c in api.get(f"edge/{edge.child}")["columns"]}
            expected = ""
            for name, title in (("p_child", r"P\(c\|p\)"), ("s_res", "S_res"), ("ungated", "ungated")):
                value, place = columns[name]["value"], columns[name]["place"]
                if value is None:
                    expected += "" if name == "ungated" else f"  {title}  - +"
                else:
                    expected += f"  {title} {value:.2f}"
                    expected += "" if place is None else rf" \({place:.0%}\)"
                    placed += place is not None
            assert re.search(rf"── +{edge.child} +[\d.]+%{expected}  ", out)
        said = " ".join(out.split())
        assert "the share of matched null pairs that the edge beats" in said
        assert ("P(c|p), S_res beat them by the gate alone" in said) == world.index.about.gated
    assert placed > 20


def test_without_null_pairs_a_line_says_how_to_get_them(
    world: World, tokenizer: PreTrainedTokenizerFast
) -> None:
    how = "No edge has a place among null pairs in this index: `saeforest index RUN --tokens 1000000`"
    for show in (show_families, partial(show_feature, feature=0)):
        file = io.StringIO()
        show(Console(file=file, width=100), Explorer(hand_index(), FOREST, tokenizer))
        assert how in " ".join(file.getvalue().split())
        assert "In brackets" not in file.getvalue()
        file = io.StringIO()
        show(Console(file=file, width=100), Explorer(world.index, world.sae.forest, tokenizer, origin="m"))
        assert "No edge has a place" not in file.getvalue()
        assert "P(c|p), S_res beat them" not in " ".join(file.getvalue().split())
        assert "S_res, ungated beat them by the choice of parents alone" in " ".join(file.getvalue().split())


@pytest.mark.parametrize(
    ("records", "line"),
    [
        ([], "`saeforest eval {run} --measures truth` measures it beside its nulls."),
        (
            [
                record("hierarchy", {"tree": 0.96, "tree_shuffled": 0.91, "tree_untrained": "no seed"}),
                record("coverage", {"ungated": 0.52}),  # without nulls
            ],
            "Hierarchy metric by the forest: 0.96; 0.91 with the parents shuffled, not measured untrained.",
        ),
        (
            [
                record("hierarchy", {"tree": 0.96, "tree_shuffled": 0.91, "tree_untrained": 0.95}),
                record("coverage", {"ungated": 0.52, "ungated_shuffled": 0.09, "ungated_untrained": 0.11}),
            ],
            "Coverage without the gate: 0.52; 0.09 with the parents shuffled, 0.11 untrained.",
        ),
    ],
)
def test_the_last_line_states_the_nulls(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, records: list[Record], line: str
) -> None:
    run = RunFolder(make_run(tmp_path / "run", {ALONE: (TREE, 0, records)}))
    nulls = nulls_line(run, run.names()[0])
    assert line.format(run=run.path) in nulls
    explorer = Explorer(hand_index(), FOREST, tokenizer)
    for show in (show_families, partial(show_feature, feature=0)):
        file = io.StringIO()
        show(Console(file=file, width=400), explorer, nulls=nulls)
        shown = re.sub(r"\s+", "", file.getvalue())
        assert shown.endswith(re.sub(r"\s+", "", nulls))


def test_a_damaged_record_hides_no_forest(tmp_path: Path) -> None:
    run = RunFolder(make_run(tmp_path / "run", {ALONE: (TREE, 0, [record("coverage", {"ungated": 0.5})])}))
    run.record(run.names()[0], "coverage").write_text("{")
    assert nulls_line(run, run.names()[0]).startswith("Whether the hierarchy was learned")


def test_a_large_family_is_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    forest = Forest(torch.tensor([-1, *[0] * 20]), (1, 20))
    index = made_index(text_tokens("a" * 50), [[0]] * 21, n_fired=[40, *range(1, 19), 0, 0])
    out = printed(show_feature, index, forest, tokenizer, 0)
    assert "+ 6 more that fire; 2 children that never fired here" in out
    assert re.findall(r"── +(\d+) ", out) == [str(c) for c in range(18, 6, -1)]


def test_a_feature_that_never_fired(tokenizer: PreTrainedTokenizerFast) -> None:
    index = hand_index(n_fired=[0] * 12, top_row=[[-1]] * 12, value_max=[0.0] * 12)
    out = printed(show_feature, index, FOREST, tokenizer, 3)
    assert "3  never fired here" in out
    assert "+ 2 children that never fired here" in out


@pytest.mark.parametrize("feature", [-1, 12])
def test_a_feature_out_of_range(tokenizer: PreTrainedTokenizerFast, feature: int) -> None:
    with pytest.raises(InputError, match=f"feature {feature}: expected 0 to 11"):
        printed(show_feature, hand_index(), FOREST, tokenizer, feature)


@pytest.mark.parametrize("width", [20, 40, 79, 200])
def test_hostile_text_at_any_width(tokenizer: PreTrainedTokenizerFast, width: int) -> None:
    tokens = text_tokens(HOSTILE, context=128)
    length = len(HOSTILE.encode())
    index = made_index(tokens, [[i % length, (i + 1) % length] for i in range(12)], **ROOTS)
    for feature in range(12):
        out = printed(show_feature, index, FOREST, tokenizer, feature, width=width)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", out)
        assert max(map(cell_len, out.splitlines())) <= min(width, 120)
    families = printed(show_families, index, FOREST, tokenizer, width=width)
    assert max(map(cell_len, families.splitlines())) <= min(width, 120)


def test_markup_and_emoji_codes_are_text(tokenizer: PreTrainedTokenizerFast) -> None:
    index = made_index(text_tokens(HOSTILE, context=128), [[0]])
    out = printed(show_feature, index, Forest(torch.tensor([-1]), (1,)), tokenizer, 0, width=120)
    assert "«x»␛[31mred␛[0m↵⇥␇[bold]b[/] �dlrow�:smile:" in out


def test_colors_on_a_terminal_only(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = printed(show_feature, hand_index(), FOREST, tokenizer, 0)
    colored = printed(
        show_feature, hand_index(), FOREST, tokenizer, 0, force_terminal=True, color_system="standard"
    )
    assert "\x1b" not in plain
    assert "\x1b" in colored
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == plain


def test_the_same_text_is_shown_once(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = text_tokens("licence", "licence", "another", context=32)
    index = made_index(tokens, [[0, 8, 16]])
    out = printed(show_feature, index, Forest(torch.tensor([-1]), (1,)), tokenizer, 0)
    assert (out.count("«l»icence"), out.count("«a»nother")) == (1, 1)
    assert re.search(r"0 +3.0%  l · a$", out, re.M)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1, "100%"),
        (0.123, "12%"),
        (0.0996, "10%"),
        (0.0123, "1.2%"),
        (0.01, "1.0%"),
        (0.00001, "0.0010%"),
    ],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text
