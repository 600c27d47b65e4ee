"""Known trees and their recovery scores, slow and in float64, written from docs/spec/synthetic.md alone.

Shapes: n samples, m true features, F latents, d dimensions. `truth_on [n, m]` and `latent_on [n, F]` say what is
active on a sample. Parents are lists; the root is -1.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Edge = tuple[int, int]
ROOT = -1


def cosines(a: FloatArray, b: FloatArray) -> FloatArray:
    out = np.zeros((len(a), len(b)))
    for i, u in enumerate(a):
        for j, v in enumerate(b):
            out[i, j] = u @ v / np.sqrt((u @ u) * (v @ v))
    return out


def best_assignment(score: FloatArray) -> dict[int, int]:
    """Row of each column, of all one-to-one assignments of min(rows, columns) pairs the one of largest sum."""
    rows, columns = score.shape
    best: dict[int, int] = {}
    most = -np.inf
    if rows <= columns:
        for chosen in itertools.permutations(range(columns), rows):
            total = sum(score[r, c] for r, c in enumerate(chosen))
            if total > most:
                most, best = total, {c: r for r, c in enumerate(chosen)}
    else:
        for chosen in itertools.permutations(range(rows), columns):
            total = sum(score[r, c] for c, r in enumerate(chosen))
            if total > most:
                most, best = total, dict(enumerate(chosen))
    return best


def mean_or_none(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def alive(latent_on: BoolArray) -> list[int]:
    return [i for i in range(latent_on.shape[1]) if latent_on[:, i].any()]


def mcc(decoder: FloatArray, truth: FloatArray, live: list[int], signed: bool) -> tuple[float, float]:
    """Mean over the matched pairs, and their sum over all true features."""
    score = cosines(decoder[live], truth)
    score = np.maximum(score, 0) if signed else np.abs(score)
    matched = [score[r, c] for c, r in best_assignment(score).items()]
    return float(np.mean(matched)), float(np.sum(matched) / len(truth))


def matching(decoder: FloatArray, truth: FloatArray, live: list[int], bound: float) -> dict[int, int]:
    """pi: true feature -> latent, where the assigned latent has at least that cosine."""
    score = np.maximum(cosines(decoder[live], truth), 0)
    return {g: live[r] for g, r in best_assignment(score).items() if score[r, g] >= bound}


def uniqueness(decoder: FloatArray, truth: FloatArray, live: list[int]) -> float:
    nearest = {int(np.argmax(row)) for row in cosines(decoder[live], truth)}
    return len(nearest) / len(live)


def detection(
    decoder: FloatArray, truth: FloatArray, live: list[int], truth_on: BoolArray, latent_on: BoolArray
) -> tuple[float, float, float]:
    precisions, recalls, f1s = [], [], []
    for i, row in zip(live, cosines(decoder[live], truth), strict=True):
        g = int(np.argmax(np.abs(row)))
        hits = int((latent_on[:, i] & truth_on[:, g]).sum())
        fired, present = int(latent_on[:, i].sum()), int(truth_on[:, g].sum())
        precision = hits / fired if fired else 0.0
        recall = hits / present if present else 0.0
        precisions.append(precision)
        recalls.append(recall)
        f1s.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return float(np.mean(precisions)), float(np.mean(recalls)), float(np.mean(f1s))


def edges(parent: list[int]) -> set[Edge]:
    return {(p, c) for c, p in enumerate(parent) if p != ROOT}


def ancestors(parent: list[int]) -> set[Edge]:
    found = set()
    for c in range(len(parent)):
        p = parent[c]
        while p != ROOT:
            found.add((p, c))
            p = parent[p]
    return found


def pair_scores(
    true: set[Edge], learned: set[Edge], pi: dict[int, int]
) -> tuple[float | None, float | None, float | None]:
    latents = set(pi.values())
    among = {(p, c) for p, c in learned if p in latents and c in latents}
    hits = sum(1 for p, c in true if p in pi and c in pi and (pi[p], pi[c]) in learned)
    precision = hits / len(among) if among else None
    recall = hits / len(true) if true else None
    if recall is None:
        return precision, None, None
    if precision is None or precision + recall == 0:
        return precision, recall, 0.0
    return precision, recall, 2 * precision * recall / (precision + recall)


def edge_scores(
    true_parent: list[int], learned_parent: list[int], pi: dict[int, int], live: list[int]
) -> dict[str, float | None]:
    precision, recall, f1 = pair_scores(edges(true_parent), edges(learned_parent), pi)
    ancestor = pair_scores(ancestors(true_parent), ancestors(learned_parent), pi)
    everywhere = [(p, c) for p, c in edges(learned_parent) if p in live and c in live]
    good = [(p, c) for p, c in edges(true_parent) if p in pi and c in pi and learned_parent[pi[c]] == pi[p]]
    children = [c for _, c in edges(true_parent) if c in pi]
    rooted = [c for c in children if learned_parent[pi[c]] == ROOT]
    return {
        "precision": precision,
        "precision_all": len(good) / len(everywhere) if everywhere else None,
        "recall": recall,
        "f1": f1,
        "ancestor_precision": ancestor[0],
        "ancestor_recall": ancestor[1],
        "ancestor_f1": ancestor[2],
        "parent_accuracy": len(good) / len(children) if children else None,
        "root_rate": len(rooted) / len(children) if children else None,
    }


def absorption(
    true_parent: list[int],
    pi: dict[int, int],
    truth_on: BoolArray,
    latent_on: BoolArray,
    truth: FloatArray,
    decoder: FloatArray,
    encoder: FloatArray,
) -> dict[str, float | None]:
    silent, excess, hole, hedging = [], [], [], []
    for p, c in sorted(edges(true_parent)):
        if p not in pi:
            continue
        q = pi[p]
        hole.append(cosines(encoder[[q]], truth[[c]])[0, 0])
        hedging.append(cosines(decoder[[q]], truth[[c]])[0, 0])
        siblings = [k for k, above in enumerate(true_parent) if above == p]
        with_child, alone = [], []
        for t in range(len(truth_on)):
            if truth_on[t, p] and truth_on[t, c]:
                with_child.append(not latent_on[t, q])
            if truth_on[t, p] and not any(truth_on[t, k] for k in siblings):
                alone.append(not latent_on[t, q])
        if with_child:
            silent.append(float(np.mean(with_child)))
            if alone:
                excess.append(float(np.mean(with_child) - np.mean(alone)))
    return {
        "silent": mean_or_none(silent),
        "silent_excess": mean_or_none(excess),
        "encoder_hole": mean_or_none(hole),
        "hedging": mean_or_none(hedging),
    }


def hierarchy(
    learned_parent: list[int], pi: dict[int, int], truth: FloatArray, decoder: FloatArray
) -> tuple[float | None, int]:
    feature = {latent: g for g, latent in pi.items()}
    hits = []
    for p, c in edges(learned_parent):
        if c not in feature:
            continue
        similar = cosines(truth[[feature[c]]], decoder)[0]
        rank = {i: 1 + sum(1 for other in similar if other > similar[i]) for i in (p, c)}
        hits.append(float(rank[p] <= 5 and rank[c] <= 5))
    return mean_or_none(hits), len(hits)


def coverage(learned_parent: list[int], latent_on: BoolArray) -> list[float]:
    found = []
    for p, c in sorted(edges(learned_parent)):
        if latent_on[:, c].any():
            found.append(float((latent_on[:, p] & latent_on[:, c]).sum() / latent_on[:, c].sum()))
    return found


# -- sampling, one sample and one feature at a time


def l0_of_contest(parent: list[int], target: FloatArray, n: int, rng: np.random.Generator) -> FloatArray:
    """How often each feature fires where features try on their own, need their parent, and siblings contest.

    `target`: the probability aimed at. A feature tries with `target / target of its parent`, scaled up by what it
    may lose to its siblings, 1 at most. Parents come before their children.
    """
    tries = target.copy()
    for i, p in enumerate(parent):
        if p != ROOT:
            rivals = sum(target[j] for j in range(len(parent)) if j != i and parent[j] == p)
            tries[i] = min(target[i] / target[p] * (1 + rivals / target[p]), 1.0)
    fired = np.zeros(len(parent))
    for _ in range(n):
        on = {i for i in range(len(parent)) if parent[i] == ROOT and rng.random() < tries[i]}
        waiting = sorted(on)
        while waiting:
            p = waiting.pop()
            trying = [i for i in range(len(parent)) if parent[i] == p and rng.random() < tries[i]]
            if trying:
                winner = trying[rng.integers(len(trying))]
                on.add(winner)
                waiting.append(winner)
        for i in on:
            fired[i] += 1
    return fired / n
