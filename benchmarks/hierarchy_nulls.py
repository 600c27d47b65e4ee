"""What the hierarchy metric gives a Tree SAE that learned no hierarchy.

    python -m benchmarks.hierarchy_nulls RUN [--parents 100] [--epochs 50] [--out FILE]

measures `hierarchy` (the library's measure, as it is) on a finished run three times, on the same text: the SAE as
trained; the same weights with parents shuffled at random within each layer, so that every parent keeps its number of
children in each; and the SAE that the run started from, before its first step: random weights and random parents. A
score says something of the hierarchy that was learned only as far as it exceeds the other two.

RUN's held-out text is measured, or, with --split train, the text it was trained on.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saeforest.activations import ActivationReader
from saeforest.config import TrainConfig
from saeforest.errors import InputError
from saeforest.evaluation import Source, evaluate_all, make_task
from saeforest.evaluation.options import MeasureOptions
from saeforest.files import write_json
from saeforest.measures.hierarchy import HierarchyConfig
from saeforest.measures.probes import ProbeConfig
from saeforest.run_folder import RunFolder
from saeforest.saes import SAE, RunLength, start_training
from saeforest.session import check_site, open_reader, read_tokens, text_source
from saeforest.structure.forest import ROOT

Split = Literal["train", "held_out"]
TRAINED, SHUFFLED, UNTRAINED = "as trained", "parents shuffled within each layer", "untrained"
COLUMNS = ("tree", "mcs", "mcs_unconditional", "lda_tree", "s_res_tree")


class Row(NamedTuple):
    """One of the SAEs: its variance explained and its scores, each with its interval."""

    which: str
    values: dict[str, tuple[float | None, tuple[float, float] | None]]
    pairs: int


def shuffled(sae: SAE, seed: int) -> SAE:
    """The SAE, whose features that hang from a parent have been dealt out anew among the same parents, layer by layer.

    In every layer each parent keeps its number of children, and features under the root stay there.
    """
    generator = torch.Generator().manual_seed(seed)
    start = 0
    for size in sae.config.layer_sizes:
        layer = sae.parent[start : start + size]
        children = (layer != ROOT).nonzero().flatten()
        order = torch.randperm(len(children), generator=generator).to(children.device)
        layer[children] = layer[children][order]
        start += size
    return sae


def untrained(config: TrainConfig, x: Float[Tensor, "n d_in"]) -> SAE:
    """The SAE as training starts it, its `b_dec` at the median of the activations `x`."""
    scale = config.sae.normalize_activations
    if scale == "dataset_scale":
        factor = math.sqrt(x.shape[1]) / float(x.norm(dim=1).mean())
        config = replace(config, sae=replace(config.sae, normalize_activations=factor))
    run = RunLength(1, len(x))
    training = start_training(config.sae, x.shape[1], run, seed=config.seed, device=x.device)
    training.initialize(x, x)
    if scale == "dataset_scale":
        training.sae.fold_scale()
    return training.sae.eval()


def first_activations(config: TrainConfig, reader: ActivationReader, n: int) -> Float[Tensor, "n d_in"]:
    """The first `n` activations of the training text, or as many as one reading of twice the tokens has."""
    tokens = read_tokens(config, reader, "train", 2 * n)
    parts, found = [], 0
    for windows in torch.arange(len(tokens.ids)).split(reader.batch_size):
        x = reader.read(tokens, windows).x.float()
        parts.append(x)
        found += len(x)
        if found >= n:
            break
    return torch.cat(parts)[:n]


def measured(
    run: Path, name: str | None, split: Split, options: MeasureOptions, shuffle_seed: int, device: str | None
) -> list[Row]:
    """The three rows. Raises InputError where the run is none, or its SAE no Tree SAE."""
    folder = RunFolder(run)
    config, sae = folder.load(name, device)
    if not sae.gated:
        raise InputError(f"{run}: expected a Tree SAE, whose children fire only with their parents")
    reader = open_reader(config)
    check_site(sae, reader)
    text = read_tokens(config, reader, split, options.tokens)
    x = first_activations(config, reader, config.optim.batch_size).to(sae.device)
    saes = {
        TRAINED: sae,
        SHUFFLED: shuffled(folder.load(name, device)[1], shuffle_seed),
        UNTRAINED: untrained(config, x),
    }
    names = {}
    tasks = []
    for which, each in saes.items():
        source = Source(text_source(config), split, config.seed, f"{run} ({which})")
        tasks.append(make_task(each, ("reconstruction", "hierarchy"), reader, text, source))
        names[id(tasks[-1])] = which
    values: dict[str, dict[str, Any]] = {which: {} for which in saes}
    pairs = dict.fromkeys(saes, 0)
    for task, record in evaluate_all(tasks, options):
        which = names[id(task)]
        if record.measure == "hierarchy":
            pairs[which] = sum(record.detail["counts"]["tree"]["pairs"])
        for column in ("fve",) if record.measure == "reconstruction" else COLUMNS:
            values[which][column] = (record.value[column], record.interval[column])
    return [Row(which, values[which], pairs[which]) for which in saes]


def table(rows: Sequence[Row]) -> str:
    """In Markdown, with 95 % intervals in brackets."""
    head = ("SAE", "FVE", *COLUMNS, "pairs by the tree")
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        cells = [_cell(*row.values[column]) for column in ("fve", *COLUMNS)]
        lines.append("| " + " | ".join((row.which, *cells, f"{row.pairs:,}")) + " |")
    return "\n".join(lines)


def _cell(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The hierarchy metric beside its nulls.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--sae", help="which SAE, of a run that trained several")
    parser.add_argument("--split", choices=("held_out", "train"), default="held_out")
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens to measure on")
    parser.add_argument("--parents", type=int, default=100, help="parents drawn by each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="random seeds of the parents drawn")
    parser.add_argument(
        "--min-count", type=int, default=100, help="a child fires on this many tokens or more"
    )
    parser.add_argument(
        "--epochs", type=int, default=ProbeConfig().epochs, help="passes of a probe's training"
    )
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of the probes"
    )
    parser.add_argument("--shuffle-seed", type=int, default=0, help="random seed of the shuffled parents")
    parser.add_argument("--device", help="of the language model and the SAEs; default: the run's")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    args = parser.parse_args(argv)
    hierarchy = HierarchyConfig(
        parents=args.parents, seeds=tuple(args.seeds), min_count=args.min_count, rank_curve=0, variants=()
    )
    options = MeasureOptions(
        tokens=args.tokens,
        measures={"hierarchy": hierarchy},
        probes=ProbeConfig(epochs=args.epochs, precision=args.precision),
    )
    rows = measured(args.run, args.sae, args.split, options, args.shuffle_seed, args.device)
    print(table(rows))
    if args.out is not None:
        settings = {
            key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()
        }
        write_json(args.out, {"settings": settings, "rows": [row._asdict() for row in rows]})
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
