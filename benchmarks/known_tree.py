"""What the demo's tree finds of a known tree, and which of its settings decide that.

    python -m benchmarks.known_tree [--seeds 1] [--steps 1000] [--only "NAME;NAME"] --out FILE

World T5 (168 features in 64 dimensions). Each variant changes some settings of the system `tree-demo`, which is the
preset `demo` at the size of the world, or one of the paper's tree, `tree-any-parent`. FILE holds all scores, with those
of the nulls, as soon as they are known.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from saeforest.presets import PRESETS
from saeforest.saes import SystemConfig, TreeConfig
from saeforest.worlds import GENERATORS
from saeforest.worlds.config import SyntheticConfig
from saeforest.worlds.presets import WORLD_SYSTEMS
from saeforest.worlds.run import compare

from .tree_options import alone

_SHOWN = (
    "fve",
    "l0",
    "matched",
    "edge_precision",
    "edge_recall",
    "edge_f1",
    "edge_f1_shuffled",
    "edge_f1_untrained",
)


# Features stay in the layers in which they were drawn, and each token has its own detectors.
_IN_PLACE: dict[str, Any] = {"detectors": "token", "promote": 0.0}
_DEMO: dict[str, Any] = {"detectors": "batch", "promote": 1.5}


def variant(weights: float = 0.02, beam: float = 2.0, **from_data: Any) -> Callable[[Any], SystemConfig]:
    """`tree-demo` in place, with other weights of the early layers, another beam, and other settings of parents from
    data."""

    def make(shape: Any) -> SystemConfig:
        demo = WORLD_SYSTEMS["tree-demo"](shape)
        assert isinstance(demo, TreeConfig)
        rule = replace(demo.allocation.from_data, **{**_IN_PLACE, **from_data})
        return replace(
            demo, layer_weights=weights, beam=beam, allocation=replace(demo.allocation, from_data=rule)
        )

    return make


def of_paper(change: str) -> Callable[[Any], SystemConfig]:
    """`tree-any-parent` with one of the changes of `benchmarks.tree_options`."""

    def make(shape: Any) -> SystemConfig:
        paper = WORLD_SYSTEMS["tree-any-parent"](shape)
        assert isinstance(paper, TreeConfig)
        return alone(paper)[change]

    return make


_PAPER = PRESETS["demo-tree-paper"].sae
assert isinstance(_PAPER, TreeConfig)
_AS_EARNED: dict[str, Any] = {**_DEMO, "score": "log_lift"}
VARIANTS = {
    "the demo's": variant(**_DEMO),
    "in place": variant(),
    "detectors share the batch": variant(detectors="batch"),
    "by lift": variant(score="log_lift"),
    "features change layers": variant(promote=1.5),
    "by lift, features change layers": variant(score="log_lift", promote=1.5),
    "detectors, by lift": variant(detectors="batch", score="log_lift"),
    "all three": variant(**_AS_EARNED),
    "in place, weights 0.1": variant(0.1),
    "in place, weights 1": variant(1.0),
    "the demo's, weights 0.1": variant(0.1, **_DEMO),
    "the demo's, weights 1": variant(1.0, **_DEMO),
    "the demo's, weights 1, a beam of 4": variant(1.0, 4.0, **_DEMO),
    "all three, weights 0.1": variant(0.1, **_AS_EARNED),
    "all three, weights 1": variant(1.0, **_AS_EARNED),
    "all three, weights 1, a beam of 4": variant(1.0, 4.0, **_AS_EARNED),
    **{f"the paper's: {change}": of_paper(change) for change in alone(_PAPER)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The demo's tree on a known tree, setting by setting.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", help="names of variants, separated by semicolons")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    WORLD_SYSTEMS.update(VARIANTS)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    config = SyntheticConfig(steps=args.steps, held_out=20_000)
    found: dict[str, Any] = {}
    for name in args.only.split(";") if args.only else VARIANTS:
        found |= compare(GENERATORS["tree"], seeds, [name], config)
        print(name, *(f"{score} {found[name][score]['values']}" for score in _SHOWN), flush=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
