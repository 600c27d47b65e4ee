"""The index of a run against dense float64 arithmetic, the families rule, and what the terminal shows."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from edits import edit_json
from saeforest.activations import ActivationBatch
from saeforest.errors import UserError
from saeforest.explore import (
    Index,
    build_index,
    show_families,
    show_feature,
    telling_families,
)
from saeforest.explore.index import About
from saeforest.explore.show import percent
from saeforest.explore.strongest import Strongest, passages
from saeforest.saes import TreeConfig, TreeSAE
from saeforest.sparse_code import SparseCode
from saeforest.structure import directions as directions_module
from saeforest.structure.directions import RIDGE
from saeforest.structure.forest import Forest
from saeforest.text import Tokens
from saeforest.text.passages import BLANK, fit, keyword_line, read_passage

EOS = 256
SIZES, K = (6, 10, 14), (2, 2, 2)
D, CONTEXT, WINDOWS, MIN_COUNT, N_CONTEXTS = 12, 8, 60, 20, 3


class Ungated(TreeSAE):
    """Children fire with or without their parents, as in an SAE whose forest was inferred."""

    def encode_normalized(self, u: Tensor) -> SparseCode:
        top = (u @ self.encoder.T).topk(sum(K))
        return SparseCode(top.values.relu(), top.indices)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and an end-of-text token."""
    letters = {letter: index for index, letter in enumerate(byte_letters())}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def byte_letters() -> list[str]:
    """The letter that spells each byte in a byte-level vocabulary (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def text_tokens(*documents: str, context: int = 64) -> Tokens:
    """Documents as bytes, each closed; filled up to whole windows with a document of full stops."""
    ids: list[int] = []
    starts = []
    for document in documents:
        starts.append(len(ids))
        ids += [*document.encode(), EOS]
    if missing := -len(ids) % context:
        starts.append(len(ids))
        ids += [ord(".")] * missing
    names = tuple(f"doc{i}" for i in range(len(starts)))
    return Tokens(torch.tensor(ids, dtype=torch.int32).view(-1, context), torch.tensor(starts), names)


# ---- every statistic against a dense oracle


def tiny_sae(kind: type[TreeSAE] = TreeSAE) -> TreeSAE:
    sae = kind(TreeConfig(layer_sizes=SIZES, k_per_layer=K), D, seed=3)
    with torch.no_grad():
        sae.b_dec.copy_(torch.linspace(-0.3, 0.3, D))
        sae.encoder[1] = 0  # never fires
    sae.metadata = {"model_name": "tiny", "hook_name": "blocks.0.hook_resid_post"}
    return sae


class World:
    def __init__(self, kind: type[TreeSAE], documents: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.sae = tiny_sae(kind)
        n = WINDOWS * CONTEXT
        starts = torch.cat(
            [torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(n - 1, generator=generator)]
        )
        starts = starts[:documents].sort().values
        ids = torch.randint(0, 256, (WINDOWS, CONTEXT), generator=generator, dtype=torch.int32)
        self.tokens = Tokens(ids, starts, tuple(map(str, range(documents))))
        self.rows = torch.arange(n)[torch.arange(n) % CONTEXT > 0][
            torch.randperm(n - WINDOWS, generator=generator)
        ]
        mixing = torch.randn(D, D, generator=generator)
        self.x = torch.randn(len(self.rows), D, generator=generator) @ mixing + 1
        self.sizes = [1, 100, len(self.rows) - 101]
        codes = [self.sae.encode(x).dense(self.sae.d_sae) for x in self.x.split(self.sizes)]
        self.f = torch.cat(codes).double()
        self.fires = self.f > 1e-3
        self.index = self.build()

    def build(self) -> Index:
        batches = map(ActivationBatch, self.x.split(self.sizes), self.rows.split(self.sizes))
        return build_index(
            self.sae, batches, self.tokens, total=len(self.rows), n_contexts=N_CONTEXTS, min_count=MIN_COUNT
        )


@pytest.fixture(scope="module", params=["tree", "ungated", "many_documents"])
def world(request: pytest.FixtureRequest) -> World:
    kind = Ungated if request.param == "ungated" else TreeSAE
    return World(kind, documents=150 if request.param == "many_documents" else 7)


def test_counts_sums_and_maxima(world: World) -> None:
    index, fires = world.index, world.fires
    assert index.about.n_tokens == len(world.rows)
    torch.testing.assert_close(index.n_fired, fires.sum(0))
    assert index.n_fired[1] == 0
    active = torch.where(fires, world.f, 0)
    torch.testing.assert_close(index.value_sum, active.sum(0), rtol=1e-12, atol=0)
    assert torch.equal(index.value_max, active.amax(0).float())
    assert float(index.density[0]) == int(fires[:, 0].sum()) / len(world.rows)


def test_an_edge_counts_tokens_with_both(world: World) -> None:
    parent = world.sae.parent
    both = [
        int((world.fires[:, c] & world.fires[:, p]).sum()) if p >= 0 else 0
        for c, p in enumerate(parent.tolist())
    ]
    assert world.index.n_with_parent.tolist() == both
    gated = world.index.n_with_parent[parent >= 0] == world.index.n_fired[parent >= 0]
    assert bool(gated.all()) == (type(world.sae) is TreeSAE)


def test_strongest_activations_come_from_different_passages(world: World) -> None:
    unit, passage = passages(world.tokens)
    assert unit == world.index.about.contexts_from
    assert unit == ("document" if len(world.tokens.names) == 150 else "window")
    of_row = passage(world.rows).tolist()
    for feature in range(world.sae.d_sae):
        best: dict[int, tuple[float, int]] = {}
        for value, row, where in zip(world.f[:, feature].tolist(), world.rows.tolist(), of_row, strict=True):
            if value > 1e-3:
                best[where] = min(best.get(where, (0.0, 0)), (-value, row))
        wanted = sorted(best.values())[:N_CONTEXTS]
        rows = world.index.top_row[feature].tolist()
        assert rows == [row for _, row in wanted] + [-1] * (N_CONTEXTS - len(wanted))
        values = world.index.top_value[feature].tolist()
        assert values == [-value for value, _ in wanted] + [0.0] * (N_CONTEXTS - len(wanted))


def test_directions_and_ranks(world: World) -> None:
    index, parent = world.index, world.sae.parent.numpy()
    x = world.x.double().numpy()
    u = (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-5)
    covariance = np.cov(u.T, bias=True)
    regular = covariance + RIDGE * np.trace(covariance) / D * np.eye(D)
    decoder = world.sae.W_dec.detach().double().numpy()
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    judged = 0
    for c in range(world.sae.d_sae):
        fires = world.fires[:, c].numpy()
        if fires.sum() < MIN_COUNT:
            assert torch.isnan(torch.stack([index.cos_child[c], index.cos_parent[c], index.s_res[c]])).all()
            assert index.rank_child[c] == index.rank_parent[c] == 0
            continue
        w = np.linalg.solve(regular, u[fires].mean(0) - u.mean(0))
        cosine = decoder @ w / np.linalg.norm(w)
        assert float(index.cos_child[c]) == pytest.approx(cosine[c], abs=1e-5)
        assert index.rank_child[c] == 1 + (cosine > cosine[c]).sum()
        if parent[c] == -1:
            assert torch.isnan(index.cos_parent[c])
            assert index.rank_parent[c] == 0
            continue
        judged += 1
        assert float(index.cos_parent[c]) == pytest.approx(cosine[parent[c]], abs=1e-5)
        assert index.rank_parent[c] == 1 + (cosine > cosine[parent[c]]).sum()
        assert float(index.s_res[c]) == pytest.approx(min(cosine[c], cosine[parent[c]]), abs=1e-5)
        assert index.passes[c] == (max(index.rank_child[c], index.rank_parent[c]) <= 5)
    assert judged == index.measured.sum() > 5


def test_the_overall_covariance_gives_the_direction_of_the_one_within_classes(world: World) -> None:
    # What the docstring of `directions` claims: LDA's own formula differs in length only.
    x = world.x.double().numpy()
    fires = world.fires[:, int(world.index.n_fired.argmax())].numpy()
    p, shift = fires.mean(), x[fires].mean(0) - x[~fires].mean(0)
    within = p * np.cov(x[fires].T, bias=True) + (1 - p) * np.cov(x[~fires].T, bias=True)
    lda = np.linalg.solve(within + 0.1 * np.eye(D), shift)
    ours = np.linalg.solve(np.cov(x.T, bias=True) + 0.1 * np.eye(D), x[fires].mean(0) - x.mean(0))
    assert lda @ ours / np.linalg.norm(lda) / np.linalg.norm(ours) == pytest.approx(1)


def test_small_blocks_and_slices_change_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions_module, "_BLOCK_ENTRIES", 2 * world.sae.d_sae)
    monkeypatch.setattr("saeforest.explore.build._SLICE", 7)
    index = world.build()
    assert torch.equal(index.top_row, world.index.top_row)
    assert torch.equal(index.rank_parent, world.index.rank_parent)
    torch.testing.assert_close(index.s_res, world.index.s_res, equal_nan=True)


def test_a_feature_that_fires_on_every_token_has_no_direction() -> None:
    sae = tiny_sae(Ungated)
    x = torch.randn(50, D)
    x[:, 0] += 50
    with torch.no_grad():
        sae.encoder[0] = torch.eye(D)[0] * 10
    tokens = Tokens(torch.zeros(10, 5, dtype=torch.int32), torch.zeros(1, dtype=torch.int64), ("a",))
    index = build_index(sae, [ActivationBatch(x, torch.arange(50))], tokens, total=50)
    assert index.n_fired[0] == 50
    assert index.rank_child[0] == 0


def test_nothing_to_index() -> None:
    with pytest.raises(UserError, match="no activations"):
        build_index(tiny_sae(), [], text_tokens("a"), total=0)


def test_strongest_breaks_ties_by_row_whatever_the_order() -> None:
    for rows in ([9, 5, 1, 6], [1, 5, 6, 9]):
        kept = Strongest(1, 2, lambda r: r // 4, torch.device("cpu"))
        for row in rows:
            kept.add(torch.tensor([0]), torch.tensor([2.0]), torch.tensor([row]))
        assert kept.row.tolist() == [[1, 5]]


def test_a_passage_that_dropped_out_comes_back() -> None:
    kept = Strongest(1, 1, lambda r: r // 4, torch.device("cpu"))
    for row, value in ((0, 1.0), (4, 2.0), (1, 3.0), (5, 2.5)):
        kept.add(torch.tensor([0]), torch.tensor([value]), torch.tensor([row]))
    assert (kept.row.tolist(), kept.value.tolist()) == ([[1]], [[3.0]])


# ---- files


def test_round_trip(world: World, tmp_path: Path) -> None:
    world.index.save(tmp_path / "run" / "index")
    loaded = Index.load(tmp_path / "run" / "index", world.sae)
    assert loaded.about == world.index.about
    assert loaded.about.model == "tiny"
    for name in ("n_fired", "n_with_parent", "value_sum", "top_value", "top_row", "cos_parent", "rank_child"):
        torch.testing.assert_close(
            getattr(loaded, name), getattr(world.index, name), equal_nan=True, rtol=0, atol=0
        )
    assert torch.equal(loaded.tokens.ids, world.tokens.ids)
    assert "NaN" not in (tmp_path / "run" / "index" / "index.json").read_text()


def one_line(error: pytest.ExceptionInfo[UserError], path: Path) -> None:
    assert "\n" not in str(error.value)
    assert f"run `saeforest index {path}`" in str(error.value)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, World]:
    world = World(TreeSAE, 7)
    world.index.save(tmp_path / "index")
    return tmp_path, world


def test_a_missing_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no index yet") as error:
        Index.load(tmp_path / "index", tiny_sae())
    one_line(error, tmp_path)


@pytest.mark.parametrize("part", ["decoder", "parent"])
def test_a_stale_index_is_noticed(saved: tuple[Path, World], part: str) -> None:
    run, world = saved
    with torch.no_grad():
        getattr(world.sae, part)[-1] = 0
    with pytest.raises(UserError, match="another SAE") as error:
        Index.load(run / "index", world.sae)
    one_line(error, run)


@pytest.mark.parametrize("name", ["index.json", "index.safetensors", "tokens.safetensors"])
@pytest.mark.parametrize("how", ["cut", "gone", "other"])
def test_a_damaged_index_is_noticed(saved: tuple[Path, World], name: str, how: str) -> None:
    run, world = saved
    path = run / "index" / name
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif how == "gone":
        path.unlink()
    else:
        path.write_text("[1]")
    with pytest.raises(UserError) as error:
        Index.load(run / "index", world.sae)
    one_line(error, run)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("n_fired", torch.zeros(3, dtype=torch.int64)),
        ("s_res", None),
        ("cos_child", torch.zeros(30, dtype=torch.int64)),
        ("top_row", torch.full((30, 3), 10**6)),
        ("top_value", torch.zeros(30, 2)),
    ],
)
def test_tensors_that_are_no_index_are_noticed(
    saved: tuple[Path, World], name: str, tensor: Tensor | None
) -> None:
    from saeforest.files import read_tensors, write_tensors

    run, world = saved
    path = run / "index" / "index.safetensors"
    tensors = read_tensors(path)
    if tensor is None:
        del tensors["cos_parent"]
    else:
        tensors[name] = tensor
    write_tensors(path, tensors)
    with pytest.raises(UserError, match="damaged") as error:
        Index.load(run / "index", world.sae)
    one_line(error, run)


@pytest.mark.parametrize("change", [{"format_version": 99}, {"n_tokens": "many"}])
def test_a_manifest_of_another_kind_is_noticed(saved: tuple[Path, World], change: dict[str, Any]) -> None:
    run, world = saved
    path = run / "index" / "index.json"
    edit_json(path, **change)
    with pytest.raises(UserError, match=next(iter(change))) as error:
        Index.load(run / "index", world.sae)
    one_line(error, run)


# ---- families, on a forest made by hand


def made_index(tokens: Tokens, rows: list[list[int]], **columns: list) -> Index:
    """An index in which every feature fires on 30 of 1,000 tokens and every edge passes, but for `columns`."""
    f = len(rows)
    values: dict[str, list] = {
        "n_fired": [30] * f,
        "n_with_parent": [30] * f,
        "value_sum": [30.0] * f,
        "value_max": [2.0] * f,
        "top_value": [[2.0 - 0.5 * i for i in range(len(r))] for r in rows],
        "top_row": rows,
        "cos_child": [0.5] * f,
        "cos_parent": [0.5] * f,
        "rank_child": [1] * f,
        "rank_parent": [2] * f,
    }
    about = About("m", "s", 1000, 20, "window", RIDGE, "")
    return Index(about, tokens, **{name: torch.tensor(v) for name, v in (values | columns).items()})


#     0        1       2      the first layer
#    3 4 5    6 7     8 9     the second
#    10 11                    below 3
FOREST = Forest(torch.tensor([-1, -1, -1, 0, 0, 0, 1, 1, 2, 2, 3, 3]), (3, 7, 2))
ROOTS = {"rank_parent": [0] * 3 + [2] * 9}


def hand_index(**columns: list) -> Index:
    tokens = text_tokens("abcdefghijklmnopqrstuvwxyz" * 4)
    return made_index(tokens, [[i] for i in range(12)], **(ROOTS | columns))


def parents(index: Index, n: int = 10) -> list[int]:
    return [family.parent for family in telling_families(index, FOREST, n).shown]


def test_families_are_ordered_by_score_without_relatives() -> None:
    # 3 lies below 0, which has more children; 1 and 2 are equal, the lower id first.
    assert parents(hand_index()) == [0, 1, 2]
    assert parents(hand_index(), n=2) == [0, 1]
    families = telling_families(hand_index(), FOREST)
    assert (families.n_edges, families.n_judged) == (9, 9)
    assert families.shown[0].score == pytest.approx(1.5 * math.log2(1000 / 30))


def test_an_ancestor_of_a_better_family_is_skipped() -> None:
    cosines = [0.5] * 10 + [0.9, 0.9]
    assert parents(hand_index(cos_child=cosines, cos_parent=cosines)) == [3, 1, 2]


def test_dense_parents_are_no_families() -> None:
    assert parents(hand_index(n_fired=[51] + [30] * 11)) == [1, 2, 3]


def test_two_edges_must_pass() -> None:
    assert parents(hand_index(rank_parent=[0] * 3 + [2, 2, 2, 6, 2, 2, 2, 2, 2])) == [0, 2]
    assert parents(hand_index(rank_child=[1] * 6 + [6] + [1] * 5)) == [0, 2]


def test_children_that_all_fire_on_one_token_are_no_family() -> None:
    rows = [[i] for i in range(12)]
    rows[7] = [6 + 26]  # the letter of row 6 again
    assert parents(hand_index(top_row=rows)) == [0, 2]


def test_a_child_that_fires_on_its_parents_token_adds_nothing() -> None:
    rows = [[i] for i in range(12)]
    rows[7] = [1 + 26]  # the letter of row 1, its parent's
    assert parents(hand_index(top_row=rows)) == [0, 2]


def test_a_child_that_fires_on_many_tokens_counts_less() -> None:
    rows = [[i, -1, -1] for i in range(12)]
    rows[7] = [7, 20, 20 + 26]  # two different letters
    index = made_index(text_tokens("abcdefghijklmnopqrstuvwxyz" * 4), rows, **ROOTS)
    by_parent = {f.parent: f.score for f in telling_families(index, FOREST).shown}
    assert by_parent[1] == pytest.approx((0.5 + 0.5 / 2**0.25) * math.log2(1000 / 30))
    assert by_parent[2] == pytest.approx(1.0 * math.log2(1000 / 30))


def test_the_best_three_children_count() -> None:
    forest = Forest(torch.tensor([-1, *[0] * 7]), (1, 7))
    index = made_index(
        text_tokens("abcdefghijklmnopqrstuvwxyz"),
        [[i] for i in range(8)],
        n_fired=[40, 30, 31, 32, 33, 34, 35, 5],
        rank_parent=[0, 1, 1, 1, 1, 1, 1, 0],
        cos_parent=[0.0, 0.3, 0.1, 0.1, 0.4, 0.1, 0.2, 0.0],
    )
    (family,) = telling_families(index, forest).shown
    assert family.children == (6, 5, 4, 3, 2, 1)
    assert family.score == pytest.approx(0.9 * math.log2(1000 / 40))


def test_rare_parents_come_first() -> None:
    # The best three of 0's children weigh more than the two of 1 and 2, but not if they are so much rarer.
    assert parents(hand_index(n_fired=[50, 5, 40] + [30] * 9)) == [1, 0, 2]


def test_a_flat_forest_has_no_families() -> None:
    index = made_index(text_tokens("ab"), [[0], [1]], rank_parent=[0, 0])
    families = telling_families(index, Forest(torch.tensor([-1, -1]), (2,)))
    assert families.shown == ()
    assert families.n_edges == 0


# ---- text


def test_passages_stay_within_document_and_window(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = text_tokens("one two", "three four five", "end", context=8)
    first = read_passage(tokens, tokenizer, 4)
    assert (first.before, first.token, first.after) == ("one ", "t", "wo")
    assert (first.starts, first.ends) == (True, True)
    cut = read_passage(tokens, tokenizer, 8 + 2)
    assert (cut.before, cut.token, cut.after) == ("th", "r", "ee fo")
    assert (cut.starts, cut.ends) == (True, False)
    tail = read_passage(tokens, tokenizer, 16 + 2)
    assert (tail.before, tail.token, tail.after) == ("ur", BLANK, "five")
    assert (tail.starts, tail.ends) == (False, True)


def test_a_closing_token_can_be_the_active_one(tokenizer: PreTrainedTokenizerFast) -> None:
    assert read_passage(text_tokens("ab", "cd"), tokenizer, 2).token == "<eos>"


def test_a_character_spelled_by_several_tokens_is_shown_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = text_tokens("aé中😀z")
    shown = [read_passage(tokens, tokenizer, row) for row in range(11)]
    assert [p.token for p in shown] == ["a", *"éé", *"中中中", *"😀😀😀😀", "z"]
    assert all(p.before + p.token + p.after == "aé中😀z" for p in shown)


def test_a_character_cut_by_the_window_leaves_no_garbage(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = text_tokens("abc中def中x", context=4)  # windows: abc+1 byte, 2 bytes+de, f+3 bytes, x
    passage = read_passage(tokens, tokenizer, 6)
    assert (passage.before, passage.token, passage.after) == ("", "d", "e")
    assert read_passage(tokens, tokenizer, 0).after == "bc"
    assert read_passage(tokens, tokenizer, 3).token == "�"  # all that this window holds of it


def test_bytes_that_are_no_text_are_shown_as_such(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = torch.tensor([[97, 0xFF, 98, 0xFE]], dtype=torch.int32)
    passage = read_passage(Tokens(ids, torch.zeros(1, dtype=torch.int64), ("d",)), tokenizer, 2)
    assert (passage.before, passage.token) == ("a�", "b")


HOSTILE = "x\x1b[31mred\x1b[0m\r\n\t\x07[bold]b[/] \u202edlrow\x9b:smile: [/red]\x7f\u2028z"


@pytest.mark.parametrize("keep", ["start", "end"])
@pytest.mark.parametrize("text", ["plain text", "中文中文中", "", "a中" * 5])
def test_fit_never_exceeds_its_columns(text: str, keep: str) -> None:
    for columns in range(13):
        assert cell_len(fit(text, columns, keep, cut=False)) <= columns  # pyright: ignore[reportArgumentType]
        assert cell_len(fit(text, columns, keep, cut=True)) <= columns  # pyright: ignore[reportArgumentType]
    assert fit("hello", 5, "start") == "hello"
    assert (fit("hello!", 5, "start"), fit("hello!", 5, "end")) == ("hell…", "…llo!")
    assert (fit("hello", 9, "start", cut=True), fit("hello", 9, "end", cut=True)) == ("hello…", "…hello")


def test_marked_tokens_stand_one_below_the_other(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = text_tokens("中文 here is a token, and more text behind it", context=64)
    lines = [keyword_line(read_passage(tokens, tokenizer, row), 12, 20).plain for row in (0, 8, 30)]
    assert [cell_len(line[: line.index("«")]) for line in lines] == [12, 12, 12]
    assert max(map(cell_len, lines)) <= 32


# ---- the terminal


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
    show(Console(file=file, width=width, **options), index, forest, tokenizer, *args)
    return file.getvalue()


def test_families_in_the_terminal(tokenizer: PreTrainedTokenizerFast) -> None:
    out = printed(show_families, hand_index(), FOREST, tokenizer)
    assert re.search("^9 parent-child edges; in 9 the child fires 20 times or more$", out, re.M)
    assert re.search(r"^ 0 +3.0 %  3 children  a$", out, re.M)
    assert re.search(r"── +3 +3.0 %  P\(c\|p\) 1.00  S_res +0.50  2 children  d$", out, re.M)
    assert "100% " in out
    assert "abc«d»efghij" in out
    assert "a high score does not show that the hierarchy was learned" in " ".join(out.split())
    below = printed(
        show_families, hand_index(cos_child=[0.9] * 12, cos_parent=[0.5] * 10 + [0.9, 0.9]), FOREST, tokenizer
    )
    assert re.search(r"^ 3 +3.0 %  under 0  2 children  d$", below, re.M)
    assert max(map(cell_len, out.splitlines())) <= 100


def test_no_family(tokenizer: PreTrainedTokenizerFast) -> None:
    out = printed(show_families, hand_index(rank_parent=[0] * 12), FOREST, tokenizer)
    assert "No family to show yet" in out
    flat = printed(show_families, hand_index(), Forest(torch.full((12,), -1), (12,)), tokenizer)
    assert "No families: every feature hangs from the root." in flat


def test_a_feature_with_its_path_and_its_children(tokenizer: PreTrainedTokenizerFast) -> None:
    index = hand_index(n_fired=[50, 0, 0, 40, 30, 0, 0, 0, 0, 0, 6, 0], rank_parent=[0] * 4 + [7] + [0] * 7)
    out = printed(show_feature, index, FOREST, tokenizer, 3)
    ids = [int(m) for m in re.findall(r"(?:^|── ) *(\d+) ", out, re.M)]
    assert ids == [0, 3, 10]
    assert "P(c|p) 0.75" in out
    assert "+ 1 child that never fired here" in out
    assert re.search(r"10 +0.60 %  P\(c\|p\) 0.75  S_res  - ", out)
    below_root = printed(show_feature, index, FOREST, tokenizer, 0)
    assert "+ 1 child that never fired here" in below_root
    assert re.search(r"4 +3.0 %  P\(c\|p\) 0.60  S_res +0.50  e$", below_root, re.M)


def test_no_mark_judges_an_edge(tokenizer: PreTrainedTokenizerFast) -> None:
    """The paper's criterion is met by a tree that was never trained: the terminal shows no verdict by it."""
    for ranks in ([1] * 12, [7] * 12):
        index = hand_index(rank_child=ranks, rank_parent=ranks)
        for out in (
            printed(show_families, index, FOREST, tokenizer),
            printed(show_feature, index, FOREST, tokenizer, 0),
        ):
            assert not re.search("[✓✗]|pass", out)


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
    with pytest.raises(UserError, match=f"feature {feature}: expected 0 to 11"):
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


def test_colours_on_a_terminal_only(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = printed(show_feature, hand_index(), FOREST, tokenizer, 0)
    coloured = printed(
        show_feature, hand_index(), FOREST, tokenizer, 0, force_terminal=True, color_system="standard"
    )
    assert "\x1b" not in plain
    assert "\x1b" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


def test_the_same_text_is_shown_once(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = text_tokens("licence", "licence", "another", context=32)
    index = made_index(tokens, [[0, 8, 16]])
    out = printed(show_feature, index, Forest(torch.tensor([-1]), (1,)), tokenizer, 0)
    assert (out.count("«l»icence"), out.count("«a»nother")) == (1, 1)
    assert re.search(r"0 +3.0 %  l · a$", out, re.M)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1, "100 %"),
        (0.123, "12 %"),
        (0.0996, "10 %"),
        (0.0123, "1.2 %"),
        (0.01, "1.0 %"),
        (0.00001, "0.0010 %"),
    ],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_frozen(world: World) -> None:
    with pytest.raises(AttributeError):
        world.index.n_fired = torch.zeros(1)  # pyright: ignore[reportAttributeAccessIssue]
    assert replace(world.index.about, model="other").model == "other"
