"""How long the directions of many features take: all probes at once, beside scikit-learn fitting one after the other.

    .venv/bin/python -m benchmarks.probes --out runs/probes.json

Synthetic activations: concepts of different frequencies, each adding its vector where it fires, to noise with the
spectrum and the mean of activations of SmolLM2-135M: one coordinate of standard deviation 230, the others falling from
34 by a power law, and a mean of norm 126. (In white noise scikit-learn needs fewer iterations than on any language
model.) Both sides see the same activations and labels, in one process with the same threads. `Probes.directions` is
timed over `--epochs` of its 50 epochs, on all features, and scaled to 50; scikit-learn's LogisticRegression
(class_weight "balanced", at most 100 iterations) is timed on `--fits` features and scaled to all of them. scikit-learn
gets float32 activations; the conversion is not timed. The directions that are compared come from the epochs that were
run.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from saeforest.files import write_json
from saeforest.measures.probes import ProbeConfig, Probes
from saeforest.sparse_code import SparseCode
from saeforest.structure.pairs import PairStatistics

_BLOCK = 1 << 14
_ITERATIONS = 100
_LARGEST, _SECOND, _DECAY, _MEAN = 230.0, 34.0, 0.4, 126.0
_STRENGTH = 40.0


class Data(NamedTuple):
    """x: `[n, d]` bfloat16, as a language model's activations. vectors: `[C, d]` of the concepts."""

    x: Tensor
    pairs: PairStatistics
    vectors: Tensor


def data(n: int, d: int, features: int) -> Data:
    """Concepts fire on 0.1% to 3% of the activations."""
    generator = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(features, d, generator=generator))
    rate = torch.logspace(-3, -1.5, features)
    scale = _SECOND * torch.arange(1, d + 1) ** -_DECAY
    scale[0] = _LARGEST
    mean = _MEAN * F.normalize(torch.randn(d, generator=generator), dim=0)
    x, pairs = torch.empty(n, d, dtype=torch.bfloat16), PairStatistics(features)
    for part in x.split(_BLOCK):
        fires = (torch.rand(len(part), features, generator=generator) < rate).float()
        noise = mean + scale * torch.randn(part.shape, generator=generator)
        part.copy_(_STRENGTH * fires @ vectors + noise)
        values, ids = fires.topk(max(int(fires.sum(1).max()), 1))
        pairs.add(SparseCode(values, ids))
    return Data(x, pairs, vectors)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probes")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--features", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=2, help="that are timed, and scaled to 50")
    parser.add_argument("--fits", type=int, default=3, help="features that scikit-learn is timed on")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "auto"), default="float32")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the numbers, as .json")
    args = parser.parse_args()
    given = data(args.tokens, args.d, args.features)
    every = torch.arange(args.features)
    given.pairs.firings(
        0
    )  # sorts them: the pass over the text that precedes any measure, not part of a probe

    full = ProbeConfig(precision=args.precision)
    probes = Probes(given.x, given.pairs, ProbeConfig(precision=args.precision, epochs=args.epochs))
    start = time.perf_counter()
    directions = probes.directions(every)
    epoch_s = (time.perf_counter() - start) / args.epochs
    probes_s = epoch_s * full.epochs

    fits = every[torch.linspace(0, args.features - 1, args.fits).long()]
    fit_s, iterations, others = alone(given, fits)
    sklearn_s = statistics.mean(fit_s) * args.features
    cosine = (directions[fits] * others).sum(1).tolist()
    to_vector = [(d * given.vectors[fits]).sum(1).mean().item() for d in (directions[fits], others)]

    print(
        f"{args.tokens:,} activations of {args.d}, {args.features} features, {torch.get_num_threads()} threads"
    )
    print(f"{'Probes':12} {probes_s:10.1f} s  ({args.epochs} of {full.epochs} epochs measured, scaled)")
    print(f"{'scikit-learn':12} {sklearn_s:10.1f} s  ({args.fits} of {args.features} fits measured, scaled)")
    print(
        f"{'':12} {min(fit_s):.1f} to {max(fit_s):.1f} s a fit, {min(iterations)} to {max(iterations)} iterations"
    )
    print(f"{'ratio':12} {sklearn_s / probes_s:10.1f}")
    print(f"cosine of both directions: {min(cosine):.3f} to {max(cosine):.3f}")
    print(
        f"mean cosine with the concept's vector: Probes {to_vector[0]:.3f}, scikit-learn {to_vector[1]:.3f}"
    )
    if args.out:
        numbers = {
            **{
                name: getattr(args, name)
                for name in ("tokens", "d", "features", "epochs", "fits", "precision")
            },
            "threads": torch.get_num_threads(),
            "probes_s": probes_s,
            "probes_epoch_s": epoch_s,
            "sklearn_s": sklearn_s,
            "sklearn_fit_s": fit_s,
            "sklearn_iterations": iterations,
            "ratio": sklearn_s / probes_s,
            "cosine": cosine,
            "cosine_with_vector": {"probes": to_vector[0], "sklearn": to_vector[1]},
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, numbers)


def alone(given: Data, features: Tensor) -> tuple[list[float], list[int], Tensor]:
    """Seconds and iterations of each feature's fit, and its unit direction."""
    x = given.x.float().numpy()
    seconds: list[float] = []
    iterations: list[int] = []
    found: list[Tensor] = []
    for feature in features.tolist():
        y = torch.zeros(len(x), dtype=torch.int64)
        y[given.pairs.firings(feature)[0].long()] = 1
        model = LogisticRegression(class_weight="balanced", max_iter=_ITERATIONS)
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 100 iterations are what is asked for
            model.fit(x, y.numpy())
        seconds.append(time.perf_counter() - start)
        iterations.append(int(model.n_iter_[0]))
        found.append(F.normalize(torch.from_numpy(model.coef_[0]).float(), dim=0))
    return seconds, iterations, torch.stack(found)


if __name__ == "__main__":
    main()
