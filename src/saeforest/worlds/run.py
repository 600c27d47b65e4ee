"""Comparing systems on a synthetic world: training them, and scoring how much of its tree they recover."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from rich import box
from rich.table import Table

from ..activations import ActivationStream
from ..config import OptimConfig
from ..errors import InputError
from ..files import read_json, write_json
from ..infer import InferConfig, infer_forest
from ..progress import progress
from ..saes import SAE, RunLength, SystemConfig, Training, start_training
from ..schema import shown
from ..training.loop import fit
from ..training.unfinished import claim_empty, claimed_run
from .config import SyntheticConfig
from .edges import named_scores
from .generators import GENERATORS
from .nulls import NULLED, VERSION
from .presets import system_for
from .recovery import Recovery, recover
from .world import Sample, World

RECOVERY, SCORES = "recovery.json", "scores.json"
Scores = dict[str, int | float | None]  # with int, so that counts are still integers after reading
_MOST = 0.97
_ABSORPTION = {"edges": "absorption_edges", "silent": "absorption", "silent_excess": "absorption_excess"}
#: system -> score -> {"median": ..., "values": [one per seed]}
Found = dict[str, dict[str, dict[str, Any]]]
#: How forests of flat SAEs are inferred. Each method is scored separately, as system+method.
INFERRED = {
    "coverage": InferConfig(method="coverage"),
    "mcs": InferConfig(method="mcs_correlation"),
    "reconstruction": InferConfig(method="reconstruction"),
}


def compare(
    make: Callable[[int], World],
    seeds: Sequence[int],
    names: Sequence[str],
    config: SyntheticConfig,
    write: Callable[[Found], None] = lambda found: None,
    kept: Kept | None = None,
) -> Found:
    """Train every system on the world of every seed and score it. Returns all scores by system (and inference method).

    make: makes the world of a seed; the seed is also that of the weights.
    names: names of systems (`SYSTEM_NAMES`).
    write: called with the scores so far after each seed.
    kept: scores of an earlier process that need not be computed again; new scores are added.

    Raises InputError for a system that can't be built for such a world.
    """
    kept = Kept() if kept is None else kept
    scores: dict[str, list[Scores]] = {}
    found: Found = {}
    for seed in seeds:
        if missing := [name for name in names if kept.get(seed, name) is None]:
            world = make(seed)
            sizes, (most, mean) = world.forest.layer_sizes, layer_l0(world, config.l0)
            systems = {name: system_for(name, sizes, most, mean, config) for name in names}
            sample = world.held_out(config.held_out)
            for name in missing:
                sae, untrained = _trained(systems[name], world, config, seed, f"{name} {seed}")
                null = dict(_scores(name, untrained, world, sample))
                own = dict(_scores(name, sae, world, sample))
                for label, scores_of in own.items():
                    scores_of |= {f"{score}_untrained": null[label][score] for score in NULLED}
                kept.put(seed, name, own)
        for name in names:
            for label, own in (kept.get(seed, name) or {}).items():
                scores.setdefault(label, []).append(own)
        summary = {
            label: {score: _summary([s[score] for s in by_seed]) for score in by_seed[0]}
            for label, by_seed in scores.items()
        }
        found = {name: s for system in names for name, s in _best_first(system, summary).items()}
        write(found)
    return found


def run_synthetic(
    generator: str,
    systems: Sequence[str],
    seeds: Sequence[int],
    config: SyntheticConfig,
    out: Path,
    world: Mapping[str, Any] | None = None,
) -> Found:
    """Run `compare` on the worlds of a generator; writes recovery.json, and scores.json with the scores of every seed.

    world: settings of the generator besides its seed.

    Continues where an earlier process with the same settings was stopped; seeds may be added. Raises InputError if
    `out` contains anything else or is in use.
    """
    with claimed_run(out):
        settings = dict(world or {})
        asked = {"generator": generator, "world": settings, "config": asdict(config), "nulls": VERSION}
        kept = Kept.read(out / SCORES, asked)
        if kept is None:
            claim_empty(out)
            kept = Kept(out / SCORES, asked)
        write = partial(write_json, out / RECOVERY, signed=False)
        return compare(
            lambda seed: GENERATORS[generator](seed=seed, **settings), seeds, systems, config, write, kept
        )


class Kept:
    """The scores of every system and seed so far, kept in a file if a path is given."""

    def __init__(self, path: Path | None = None, asked: Mapping[str, Any] | None = None) -> None:
        self._path, self._asked = path, dict(asked or {})
        self._scores: dict[str, dict[str, dict[str, Scores]]] = {}

    @classmethod
    def read(cls, path: Path, asked: Mapping[str, Any]) -> Kept | None:
        """Read a file of scores; None if there is none. Raises InputError if its settings differ from `asked`."""
        if not path.exists():
            return None
        again = "choose another folder, or delete this one"
        data = read_json(path)
        try:
            there = KeptFile.model_validate(data)
        except ValidationError as error:
            key = ".".join(map(str, error.errors()[0]["loc"]))
            raise InputError(f"{path}: key '{key}': {error.errors()[0]['msg']}; {again}") from None
        plain = json.loads(json.dumps(asked))
        if there.asked != plain:
            keys = sorted(plain.keys() | there.asked.keys())
            key = next(k for k in keys if there.asked.get(k, ...) != plain.get(k, ...))
            raise InputError(
                f"{path.parent}: has results with {key[:80]} = {shown(there.asked.get(key))}, not "
                f"{shown(plain.get(key))}; {again}"
            )
        kept = cls(path, asked)
        kept._scores = there.scores
        return kept

    def get(self, seed: int, system: str) -> dict[str, Scores] | None:
        """The scores of a system and seed, by inference method; None if there are none yet."""
        return self._scores.get(str(seed), {}).get(system)

    def put(self, seed: int, system: str, scores: dict[str, Scores]) -> None:
        """Add the scores of a system and seed, and write the file."""
        self._scores.setdefault(str(seed), {})[system] = scores
        if self._path is not None:
            write_json(self._path, {"asked": self._asked, "scores": self._scores})


class KeptFile(BaseModel):
    """The content of scores.json: the settings, and seed -> system -> scores."""

    model_config = ConfigDict(extra="forbid", strict=True)

    asked: dict[str, Any]
    scores: dict[str, dict[str, dict[str, Scores]]]


def _best_first(
    system: str, summary: Mapping[str, dict[str, dict[str, Any]]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """The scores of a system; if its forest is inferred, first by the best method (by edge F1), then by all methods."""
    ways = {name: scores for name, scores in summary.items() if name.split("+")[0] == system}
    best = max(ways, key=lambda name: ways[name]["edge_f1"]["median"] or 0.0)
    return {system: ways[best]} | ways


def layer_l0(world: World, l0: float | None = None) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """For each layer, the number of active features that is exceeded on only 3% of samples, and the mean number.

    l0: if given, both are scaled so that the means add up to this.
    """
    code = world.sample(20_000, torch.Generator().manual_seed(0)).code
    layer = world.forest.layer[code.ids]
    most, mean = [], []
    for i in range(len(world.forest.layer_sizes)):
        active = (code.active() & (layer == i)).sum(1).double()
        most.append(float(active.quantile(_MOST)))
        mean.append(float(active.mean()))
    scale = 1.0 if l0 is None else l0 / sum(mean)
    return tuple(max(round(k * scale), 1) for k in most), tuple(k * scale for k in mean)


def _trained(
    system: SystemConfig, world: World, config: SyntheticConfig, seed: int, label: str
) -> tuple[SAE, SAE]:
    """The SAE after training, and as it was before the first step: its null (docs/spec/synthetic.md#nulls)."""
    optim = OptimConfig(
        lr=config.lr, batch_size=config.batch_size, warmup=0.02, decay="linear", decay_from=0.6
    )
    run = RunLength(config.steps, config.batch_size)

    def start() -> Training:
        return start_training(system, world.d_in, run, seed=seed, optim=optim, precision=torch.float32)

    training = start()
    first = world.block(0, 0).x[: config.batch_size]
    with progress(label, config.steps * config.batch_size) as advance:
        for _ in fit(training, ActivationStream(world, config.batch_size)):
            advance(config.batch_size)
    with torch.no_grad():
        sae = training.finish()
        return sae, start().untrained(first, first, learned=sae.parent if sae.has_forest else None)


@torch.no_grad()
def _scores(name: str, sae: SAE, world: World, sample: Sample) -> Iterator[tuple[str, Scores]]:
    code, stats = sae.encode_with_stats(sample.x)
    residual = (sample.x - sae.decode(code, stats)).square().sum()
    threshold = sae.config.activation_threshold
    own = {
        "fve": 1 - float(residual / (sample.x - sample.x.mean(0)).square().sum()),
        "l0": float(code.active(threshold).sum() / len(sample)),
    }
    forests = (
        {"": sae.forest}
        if sae.has_forest
        else {way: infer_forest(sae, sample.x.split(8192), config).forest for way, config in INFERRED.items()}
    )
    for way, forest in forests.items():
        recovery = recover(
            world,
            sample,
            decoder=sae.decoder,
            encoder=sae.encoder,
            code=code,
            forest=forest,
            threshold=threshold,
        )
        yield f"{name}+{way}" if way else name, own | _plain(recovery)


def _plain(recovery: Recovery) -> Scores:
    """The scores by name, those with the parents shuffled as X_shuffled."""
    plain = {f.name: getattr(recovery, f.name) for f in fields(recovery)}
    strict, loose, absorption, shuffled = (
        plain.pop(key) for key in ("edges", "edges_loose", "absorption", "shuffled")
    )
    plain |= named_scores(strict, loose)
    plain |= {_ABSORPTION.get(name, name): value for name, value in asdict(absorption).items()}
    return plain | {f"{name}_shuffled": value for name, value in shuffled.items()}


def _summary(values: list[float | None]) -> dict[str, Any]:
    known = [v for v in values if v is not None]
    return {"median": statistics.median(known) if known else None, "values": values}


#: Scores that the table shows, and their titles.
_COLUMNS = {
    "fve": "FVE",
    "l0": "L0",
    "mcc_truth": "MCC",
    "edge_precision": "P",
    "edge_recall": "R",
    "absorption_excess": "absorbed",
    "edge_f1": "F1",
}


#: The rows below each system: the scores that have nulls, under each of them.
_NULLS = {"shuffled": "    parents shuffled", "untrained": "    untrained"}


def recovery_table(found: Mapping[str, Mapping[str, Mapping[str, Any]]], generator: str) -> Table:
    """The main scores as a table for the terminal, with their nulls: medians over seeds, and the range of edge F1."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"Recovery of {generator}",
        title_justify="left",
        caption="P, R, F1: of edges; below, the same with parents shuffled, and before training\n"
        "(under the learned parents, if training starts without)",
        caption_justify="left",
    )
    table.add_column("system", no_wrap=True)
    for title in (*_COLUMNS.values(), "F1 range"):
        table.add_column(title, justify="right", no_wrap=True)
    for label, scores in found.items():
        # A system's first row is that of the best method to infer its forest; all methods follow.
        shown = f"  by {label.split('+')[1]}" if "+" in label else label
        table.add_row(
            shown, *(_number(scores[score]["median"]) for score in _COLUMNS), _range(scores["edge_f1"])
        )
        for null, row in _NULLS.items():
            of_null = (scores.get(f"{score}_{null}") for score in _COLUMNS)
            cells = ("" if each is None else _number(each["median"]) for each in of_null)
            table.add_row(row, *cells, _range(scores[f"edge_f1_{null}"]), style="dim")
    return table


def _range(score: Mapping[str, Any]) -> str:
    known = [value for value in score["values"] if value is not None]
    return f"{min(known):.2f}–{max(known):.2f}" if len(known) > 1 else ""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
