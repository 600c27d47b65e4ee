"""Do the estimates of a concept's direction find it? Measured where the truth is known.

    python -m benchmarks.directions [--seeds 3] [--samples 60000] [--out FILE]

Worlds are known trees (docs/spec/synthetic.md): 8 roots, 4 children each, 4 grandchildren each, 168 features. The SAE
is the truth itself: the true vectors as decoder rows, the true firings, the true edges. Nothing is learned but the
directions d*_c of the 160 children's concepts, so whatever differs between two rows of the table is the estimator's
doing. They are compared with two truths: the child's own vector, which is what tells the child from everything else,
and the concept's mean, which is what an activation has more of where the child is active.

The command has one thread: `OMP_NUM_THREADS=1`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saeforest.errors import InputError
from saeforest.files import write_json
from saeforest.kernels import sparse_decode
from saeforest.measures.probes import ProbeConfig, Probes
from saeforest.measures.reconstruction_score import pair_nearness
from saeforest.seeds import seeded
from saeforest.structure.directions import Directions, Moments
from saeforest.structure.pairs import PairStatistics
from saeforest.structure.shuffled import shuffled_within_levels
from saeforest.worlds import World
from saeforest.worlds.directions import mean_directions
from saeforest.worlds.generators import tree

_ROWS = 8192


@dataclass(frozen=True)
class Setting:
    """A known tree, and the standard deviation of the noise in each of its dimensions."""

    name: str
    d: int
    parent_offset: float
    noise: float


SETTINGS = (
    Setting("168 orthogonal features in 192 dimensions", 192, 0.0, 0.0),
    Setting("in 64 dimensions, noise 0.05", 64, 0.0, 0.05),
    Setting("in 192 dimensions, children lean on parents (0.5), noise 0.05", 192, 0.5, 0.05),
)


class Case:
    """A world, activations of it, and the firings of its true features on them."""

    def __init__(self, world: World, samples: int, noise: float, seed: int, batch_size: int = 4096) -> None:
        self.world, self.batch_size = world, batch_size
        code = world.sample(samples, seeded(seed, "directions", "samples")).code
        self.x = sparse_decode(code.values, code.ids, world.vectors)
        self.x += noise * torch.randn(self.x.shape, generator=seeded(seed, "directions", "noise"))
        self.pairs = PairStatistics(world.m)
        self.pairs.add(code)
        self._code = code
        n = self.pairs.marginals.n[world.forest.edges[1]]
        fires = world.forest.edges[1][(n > 0) & (n < samples)]
        self.children: Int[Tensor, "e"] = fires
        self.parents: Int[Tensor, "e"] = world.forest.parent[fires]

    @cached_property
    def moments(self) -> Moments:
        moments = Moments(self.world.m, self.world.d_in, torch.device("cpu"))
        for part in torch.arange(len(self.x)).split(_ROWS):
            moments.add(self.x[part], self._code.ids[part], self._code.active()[part].float())
        return moments

    def lda(self, ridge: float) -> Float[Tensor, "e d"]:
        return Directions(self.moments, self.pairs.marginals.n, 1, ridge).of(self.children)

    def probe(self, **settings: Any) -> Float[Tensor, "e d"]:
        config = ProbeConfig(**{"batch_size": self.batch_size, **settings})
        return Probes(self.x, self.pairs, config).directions(self.children)


#: The unit direction of every child's concept, by name: the two truths first.
ESTIMATORS: dict[str, Callable[[Case], Float[Tensor, "e d"]]] = {
    "truth: the child's own vector": lambda case: F.normalize(case.world.vectors[case.children]),
    "truth: the concept's mean": lambda case: mean_directions(case.world)[case.children],
    "LDA, ridge 1e-4": lambda case: case.lda(1e-4),
    "LDA, ridge 0.1": lambda case: case.lda(0.1),
    "probe, 5 epochs": lambda case: case.probe(epochs=5),
    "probe, 20 epochs": lambda case: case.probe(epochs=20),
    "probe, 50 epochs": lambda case: case.probe(epochs=50),
    "probe, 50 epochs, batches a sixteenth": lambda case: case.probe(
        epochs=50, batch_size=max(case.batch_size // 16, 1)
    ),
    "mean difference": lambda case: case.probe(method="mean_difference"),
}


@dataclass(frozen=True)
class Agreement:
    """Means over the true edges whose child fires. None where there are no such edges."""

    own: float
    """Cosine with the child's own vector."""
    mean: float
    """Cosine with the concept's mean direction."""
    parent: float
    """Cosine with the parent's vector."""
    s_res: float
    """Reconstruction score (Eq. 5)."""
    hits: float
    """Fraction of the edges that pass the top-5 rule."""
    hits_leaf: float | None
    """The same over children that have fewer than four children of their own."""
    hits_inner: float | None
    """The same over children that have four or more children of their own."""
    hits_shuffled: float
    """The same with parents shuffled among the children of each level."""


def agreement(case: Case, directions: Float[Tensor, "e d"], seed: int = 0) -> Agreement:
    """How near the directions of `case.children` come to the truth, and what the true edges score by them."""
    world, children = case.world, case.children
    rows = F.normalize(world.vectors)
    near = pair_nearness(directions, rows, case.parents, children)
    other = shuffled_within_levels(world.forest, seeded(seed, "directions", "shuffle"))[children]
    shuffled = pair_nearness(directions, rows, other, children)
    inner = world.forest.n_children[children] >= 4

    def share(hit: Tensor) -> float | None:
        return float(hit.double().mean()) if len(hit) else None

    return Agreement(
        own=float((directions * rows[children]).sum(1).mean()),
        mean=float((directions * mean_directions(world)[children]).sum(1).mean()),
        parent=float(near.cos_parent.mean()),
        s_res=float(near.score.mean()),
        hits=float(near.hit.double().mean()),
        hits_leaf=share(near.hit[~inner]),
        hits_inner=share(near.hit[inner]),
        hits_shuffled=float(shuffled.hit.double().mean()),
    )


#: setting -> estimator -> one `Agreement` for each seed
Found = dict[str, dict[str, list[Agreement]]]


def measured(settings: Sequence[Setting], seeds: Sequence[int], samples: int) -> Found:
    """All estimators on all settings."""
    found: Found = {}
    for setting in settings:
        for seed in seeds:
            world = tree(seed, d=setting.d, parent_offset=setting.parent_offset)
            case = Case(world, samples, setting.noise, seed)
            for name, estimate in ESTIMATORS.items():
                rows = found.setdefault(setting.name, {}).setdefault(name, [])
                rows.append(agreement(case, estimate(case), seed))
                print(f"{setting.name}, seed {seed}: {name}", file=sys.stderr)
    return found


_COLUMNS = {
    "own": "cosine with the child's own vector",
    "mean": "with the concept's mean",
    "parent": "with the parent's vector",
    "s_res": "S_res",
    "hits": "hits",
    "hits_leaf": "hits, child without children",
    "hits_inner": "hits, child with 4 children",
    "hits_shuffled": "hits, parents shuffled",
}


def table(by_estimator: Mapping[str, Sequence[Agreement]]) -> str:
    """In Markdown: means over the seeds, and the range of `hits`."""
    lines = [f"| direction | {' | '.join(_COLUMNS.values())} |", "|---|" + "---:|" * len(_COLUMNS)]
    for name, rows in by_estimator.items():
        lines.append(f"| {name} | {' | '.join(_cell(rows, column) for column in _COLUMNS)} |")
    return "\n".join(lines)


def _cell(rows: Sequence[Agreement], column: str) -> str:
    values = [value for row in rows if (value := getattr(row, column)) is not None]
    if not values:
        return "–"
    text = (
        f"{statistics.mean(values):.3f}"
        if column in ("parent", "s_res")
        else f"{statistics.mean(values):.2f}"
    )
    if column == "hits" and max(values) - min(values) >= 0.01:
        text += f" ({min(values):.2f} to {max(values):.2f})"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Estimates of concept directions beside the truth.")
    parser.add_argument("--seeds", type=int, default=3, help="number of worlds of each kind")
    parser.add_argument("--samples", type=int, default=60_000, help="activations for each world")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    start = time.process_time()
    found = measured(SETTINGS, range(args.seeds), args.samples)
    for name, by_estimator in found.items():
        print(f"\n{name}\n\n{table(by_estimator)}")
    print(f"\n{time.process_time() - start:.0f} s of CPU", file=sys.stderr)
    if args.out is not None:
        rows = {
            setting: {name: [asdict(row) for row in of_seeds] for name, of_seeds in by_estimator.items()}
            for setting, by_estimator in found.items()
        }
        write_json(args.out, {"samples": args.samples, "seeds": args.seeds, "settings": rows})
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
