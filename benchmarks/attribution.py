"""How faithful attributions are: against the effect of ablating what they are about.

    python -m benchmarks.attribution RUN [--sae NAME] [--texts 16] [--length 24] [--features 12] [--seed 0]

Reads the first tokens of windows of held-out text, a window a text. The metric is the logit of the model's likeliest
next token less that of the second. For each text, features that are active anywhere in it are attributed and ablated:
those of largest integrated gradients, and as many of the others at random; and edges in the same way, each with all
below its child. Printed are the correlations between attribution and effect, pooled over texts, with 95 % intervals
over texts, and how often the two have the same sign.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from saeforest.interventions import Where
from saeforest.interventions.attribution import Attribution, ablation_effects, attribute, logit_difference
from saeforest.lm import LanguageModel
from saeforest.run_folder import RunFolder
from saeforest.saes import SAE
from saeforest.session import open_reader, read_tokens

_RESAMPLES = 1000
METHODS = ("gradient", "integrated")


class Compared(NamedTuple):
    """Effects of ablation and the attributions by each method, of one text."""

    effect: NDArray[np.float64]
    estimates: dict[str, NDArray[np.float64]]
    chosen: NDArray[np.bool_]
    """Which are those of largest attribution."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Attributions against ablation.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--sae", help="which SAE of the run; default: the only one")
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--features", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config, sae = RunFolder(args.run).load(args.sae)
    # In bfloat16 logits are rounded to sixteenths, which is more than most features do.
    config = replace(config, lm=replace(config.lm, dtype="float32"))
    reader = open_reader(config)
    tokens = read_tokens(config, reader, "held_out", 100 * config.text.context)
    rng = np.random.default_rng(args.seed)
    drawn = np.sort(rng.permutation(len(tokens.ids))[: args.texts])
    where = Where("all", reader.exclude_first, reader.exclude_special, reader.max_norm)
    features: list[Compared] = []
    edges: list[Compared] = []
    for window in drawn.tolist():
        ids = tokens.ids[window, : args.length].long()[None]
        both = compare(reader.lm, sae, ids, where, args.features, rng)
        features.append(both[0])
        edges.append(both[1])
        print(f"window {window}: {len(both[0].effect)} features, {len(both[1].effect)} edges", flush=True)
    print(f"{'':10} {'method':11} {'of':22} {'pearson':>22} {'spearman':>22} {'same sign':>10}")
    for title, found in (("features", features), ("edges", edges)):
        for method in METHODS:
            for of in ("the largest", "others, at random", "both"):
                print(f"{title:10} {method:11} {of:22} {summary(found, method, of)}")


def compare(
    lm: LanguageModel, sae: SAE, ids: Tensor, where: Where, n: int, rng: np.random.Generator
) -> tuple[Compared, Compared]:
    """Attributions and effects of features, and of edges, on one text."""
    likeliest, second = lm.logits(ids)[0, -1].topk(2).indices.tolist()
    metric = logit_difference(likeliest, second)
    found = {method: attribute(lm, sae, ids, metric, where, method=method) for method in METHODS}
    forest = sae.forest

    def one(numbers: dict[str, Tensor], sets: list[list[int]], active: NDArray[np.int64]) -> Compared:
        order = active[np.argsort(-numbers["integrated"].abs().numpy()[active], kind="stable")]
        others = rng.permutation(order[n:])[:n]
        chosen = np.concatenate([order[:n], others])
        effect = ablation_effects(lm, sae, ids, metric, [sets[i] for i in chosen.tolist()], where)
        estimates = {method: of.numpy()[chosen] for method, of in numbers.items()}
        return Compared(effect.numpy(), estimates, np.arange(len(chosen)) < min(n, len(order)))

    active = np.unique(active_ids(found["integrated"]))
    features = one(
        {m: a.by_feature(sae.d_sae) for m, a in found.items()}, [[f] for f in range(sae.d_sae)], active
    )
    below = [list(forest.subtree(c)) for c in forest.edges[1].tolist()]
    of_edges = np.flatnonzero(np.isin(forest.edges[1].numpy(), active))
    edges = one({m: a.by_edge(forest) for m, a in found.items()}, below, of_edges)
    return features, edges


def active_ids(found: Attribution) -> NDArray[np.int64]:
    return found.code.ids[found.code.values != 0].cpu().numpy()


def summary(found: list[Compared], method: str, of: str) -> str:
    """A row of numbers, with intervals over texts."""

    def pooled(texts: list[Compared]) -> tuple[float, float, float]:
        parts = []
        for text in texts:
            mine = {"the largest": text.chosen, "others, at random": ~text.chosen}.get(of, text.chosen | True)
            parts.append((text.estimates[method][mine], text.effect[mine]))
        a, b = (np.concatenate(column) for column in zip(*parts, strict=True))
        return float(np.corrcoef(a, b)[0, 1]), spearman(a, b), float((np.sign(a) == np.sign(b)).mean())

    rng = np.random.default_rng(0)
    values = pooled(found)
    drawn = np.array(
        [pooled([found[i] for i in rng.integers(len(found), size=len(found))]) for _ in range(_RESAMPLES)]
    )
    low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
    cells = [f"{values[i]:6.2f} ({low[i]:5.2f} to {high[i]:5.2f})" for i in range(2)]
    return f"{cells[0]:>22} {cells[1]:>22} {values[2]:10.2f}"


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The correlation of ranks; values are seldom equal."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


if __name__ == "__main__":
    main()
