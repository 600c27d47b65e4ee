"""Compares SCR, RAVEL's intervention and unlearning with SAEBench 0.6.0's functions, on small data made here.

.venv/bin/python -m benchmarks.saebench.small --out runs/saebench-small
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from benchmarks.peers.environments import ROOT, EnvironmentFailure
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeforest.interventions import edited, set_to
from saeforest.interventions.splice import Splice
from saeforest.measures import scr as scr_module
from saeforest.measures.exams import question_text
from saeforest.measures.pooled import LabeledCodes, ReadTexts, divide, pooled_code
from saeforest.measures.pooled_probes import LinearProbes
from saeforest.measures.ravel_prompts import verdict
from saeforest.measures.ravel_swap import swap_of
from saeforest.measures.scr import ScrConfig, TwoLabelTextConfig, balanced, scr
from saeforest.measures.subject import Subject
from saeforest.measures.unlearning import least_accuracy, top_features
from saeforest.saes import SAE, TopKConfig, TreeConfig, build, save_sae
from saeforest.text.questions import Question

from .environment import saebench_python

_D, _TEXTS, _TOKENS, _STRENGTH, _TEMPERATURE = 24, 60, 7, 5.0, 0.1
_SIZES, _THRESHOLDS = [2, 10, 40, 70], [0.05, 0.3]
_SAES = {
    "topk": TopKConfig((80,), (7,), normalize_activations="none"),
    "topk, layer norm": TopKConfig((80,), (7,)),
    "tree": TreeConfig((16, 24, 40), (4, 3, 2)),
}
_COMPLETIONS = [
    (" Paris, the", "Paris"), (' Paris" and', "Paris"), (" London", "Paris"), (" paris", "Paris"), ("", "Paris"),
    (" South America.", "South America"), (" England", "United Kingdom"), (" Korea", "South Korea"),
]  # fmt: skip
_ACCURACIES = [
    [[0.5, 0.2, 0.9], [0.995, 0.9, 1.0]],
    [[0.5, 0.2], [0.5, 0.6]],
    [[0.25, 0.3, 0.1], [0.99, 1.0, 0.989]],
]
_QUESTION = Question("What is blue?", ("snow", "the sky", "grass", "coal"), 1, "colors")


class Compared(NamedTuple):
    """What both sides compute. sae: of which SAE, if of one. difference: the largest; of choices, how many."""

    what: str
    sae: str
    difference: float

    @property
    def row(self) -> str:
        """As a row of the table."""
        difference = "none" if self.difference == 0 else f"{self.difference:.1e}"
        return f"| {self.what} | {self.sae} | {difference} |"


def texts() -> tuple[Tensor, np.ndarray]:
    """Activations `[texts, tokens, d]` of equally long texts, and the quadrant of each; labels are directions."""
    rng = np.random.default_rng(0)
    quadrant = np.repeat(np.arange(4), _TEXTS)
    towards = rng.normal(size=(2, _D))
    x = rng.normal(size=(len(quadrant), _TOKENS, _D)) + 0.3
    x += 0.25 * np.where(quadrant < 2, 1, -1)[:, None, None] * towards[0]
    x += 0.25 * np.where(quadrant % 2 == 0, 1, -1)[:, None, None] * towards[1]
    return torch.from_numpy(x).float(), quadrant


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.saebench.small", description=(__doc__ or "").splitlines()[0]
    )
    p.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="for what the two sides exchange"
    )
    p.add_argument(
        "--python", type=Path, help="an interpreter that has SAEBench 0.6.0; by default one is made"
    )
    options = p.parse_args(arguments)
    try:
        print(table(options.out.absolute(), options.python))
    except EnvironmentFailure as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def table(folder: Path, python: Path | None = None) -> str:
    """The largest differences as a table, which `folder/comparison.md` keeps too. Raises EnvironmentFailure."""
    versions, found = compare(folder, python)
    lines = [
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        "",
        "| | SAE | largest difference |",
        "|---|---|---|",
        *(one.row for one in found),
    ]
    text = "\n".join(lines) + "\n"
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    return text


def compare(folder: Path, python: Path | None = None) -> tuple[dict[str, str], list[Compared]]:
    """The versions of their packages, and the largest differences. Raises EnvironmentFailure."""
    folder.mkdir(parents=True, exist_ok=True)
    saes = {name: _made(name, folder) for name in _SAES}
    x, quadrant = texts()
    config = ScrConfig(TwoLabelTextConfig(train=2, test=1), n=tuple(_SIZES), select_on="test")
    train, test = divide(quadrant, config.texts)
    read = ReadTexts(
        config.texts, ("p & m", "p & f", "n & m", "n & f"), x.flatten(0, 1), np.full(len(x), _TOKENS), train, test,
        x.shape[0] * _TOKENS,
    )  # fmt: skip
    given = _given(x, train, test)
    _write(folder, given)
    run_theirs(folder, python)
    theirs = json.loads((folder / "theirs.json").read_text("utf-8"))
    tensors = load_file(folder / "theirs.safetensors")
    found: list[Compared] = []
    for name, sae in saes.items():
        found += _scr(name, sae, read, config, theirs[name]["scr"], tensors)
        found += _interventions(name, sae, given, tensors)
    found += _unlearning(given, theirs)
    wrong = sum(
        bool(verdict(*pair)) != right for pair, right in zip(_COMPLETIONS, theirs["verdicts"], strict=True)
    )
    found.append(Compared(f"RAVEL: verdicts on {len(_COMPLETIONS)} completions", "", wrong))
    return theirs["versions"], found


def _made(name: str, folder: Path) -> SAE:
    sae = build(_SAES[name], _D, seed=3)
    with torch.no_grad():
        sae.b_dec.copy_(0.3 * torch.randn(_D, generator=torch.Generator().manual_seed(0)))
    save_sae(sae.eval(), folder / name)
    return sae


def _given(x: Tensor, train: np.ndarray, test: np.ndarray) -> dict[str, Tensor]:
    """The texts of the three probes; of the test texts all are asked, so those of the third are there twice."""
    found: dict[str, Tensor] = {}
    every = np.concatenate([test, test], axis=1)
    for side, quadrants in (("train", train), ("test", every)):
        rows, own = balanced(quadrants)
        # SAEBench's order: the second label, the first, both.
        for i, probe in enumerate((1, 0, 2)):
            for j, mine in enumerate((own, ~own)):
                found[f"{side}.{i}.{j}"] = x[torch.from_numpy(rows[probe][mine])].contiguous()
    generator = torch.Generator().manual_seed(1)
    found["base"], found["source"] = (2 * torch.randn(16, _D, generator=generator) + 1 for _ in range(2))
    found["mask"] = torch.randn(80, generator=generator)
    found["forget"], found["retain"] = (torch.rand(80, generator=generator) for _ in range(2))
    found["forget"][::3] = 0
    return found


def _write(folder: Path, given: dict[str, Tensor]) -> None:
    save_file(given, folder / "given.safetensors")
    orders = [(0, 1, 2, 3), (3, 1, 0, 2)]
    intro = question_text(_QUESTION, orders[0]).split("\n")[0] + "\n"
    job = {
        "saes": list(_SAES),
        "n": _SIZES,
        "clamped": list(range(0, 80, 3)),
        "strength": _STRENGTH,
        "thresholds": _THRESHOLDS,
        "accuracies": _ACCURACIES,
        "completions": _COMPLETIONS,
        "questions": [
            {
                "question": _QUESTION.question,
                "choices": list(_QUESTION.choices),
                "order": order,
                "intro": intro,
            }
            for order in orders
        ],
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")


def run_theirs(folder: Path, python: Path | None) -> None:
    """Run SAEBench's side. Raises EnvironmentFailure."""
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [str(python or saebench_python()), "-m", "benchmarks.saebench.theirs.small", str(folder)]
    if subprocess.run(command, cwd=ROOT, env=offline, check=False).returncode:
        raise EnvironmentFailure("SAEBench's side failed; its messages are above")


def _scr(
    name: str,
    sae: SAE,
    read: ReadTexts,
    config: ScrConfig,
    theirs: dict[str, Any],
    tensors: dict[str, Tensor],
) -> list[Compared]:
    """Our measure with SAEBench's probes."""
    order = (1, 0, 2)
    probes = LinearProbes(
        np.stack([tensors[f"{name}.weight.{i}"].double().numpy() for i in order]),
        np.array([float(tensors[f"{name}.bias.{i}"]) for i in order]),
    )
    own, scr_module.fit_probes = scr_module.fit_probes, lambda *_, **__: probes
    try:
        codes = LabeledCodes(read, pooled_code(sae, read))
        record = scr(Subject(sae, {}, {"labeled_texts": lambda: codes, "forest": lambda: sae.forest}), config)
    finally:
        scr_module.fit_probes = own
    entry = record.detail["pairs"][0]
    scores = [
        abs(entry_score(record, d, n) - theirs["scores"][f"scr_dir{i}_threshold_{n}"])
        for i, d in ((1, "label"), (2, "second"))
        for n in _SIZES
    ]
    shown = [record.value[f"scr_{n}"] for n in _SIZES]
    effects = []
    for i, direction in enumerate(("label", "second")):
        mine = np.array(entry[direction]["effects"])
        effects.append(
            np.abs(mine - tensors[f"{name}.effects.{i}"].double().numpy()[entry[direction]["features"]]).max()
        )
    values = ", ".join(f"{v:.3f}" for v in shown if v is not None)
    sizes = ", ".join(map(str, _SIZES))
    return [
        Compared("SCR: effects of the first 20 features", name, max(effects)),
        Compared(f"SCR: both directions, {sizes} features ({values})", name, max(scores)),
    ]


def entry_score(record: Any, direction: str, n: int) -> float:
    """A direction's score."""
    return float(record.value[f"scr_{direction}_{n}"])


@torch.no_grad()
def _interventions(
    name: str, sae: SAE, given: dict[str, Tensor], tensors: dict[str, Tensor]
) -> list[Compared]:
    swap = swap_of(sae, torch.cat([given["base"], given["source"]]), False)
    n = len(given["base"])
    masks = (given["mask"] > 0).float(), torch.sigmoid(given["mask"] / _TEMPERATURE)
    ours = torch.stack([swap.mixed(range(n), range(n, 2 * n), mask) for mask in masks])
    x = given["base"].reshape(4, -1, _D)
    keep = torch.ones(x.shape[:2], dtype=torch.bool)
    keep[:, 0] = False
    edit = edited([set_to(list(range(0, 80, 3)), -_STRENGTH, where_active=True)])
    clamped = Splice(sae, edit, error=True, keep=keep)(x)
    swaps, clamps = _share(ours, tensors[f"{name}.swapped"]), _share(clamped, tensors[f"{name}.clamped"])
    return [
        Compared("RAVEL: activations after a swap, mask tested and in training", name, swaps),
        Compared("unlearning: activations after clamping", name, clamps),
    ]


def _unlearning(given: dict[str, Tensor], theirs: dict[str, Any]) -> list[Compared]:
    shares = given["forget"].double().numpy(), given["retain"].double().numpy()
    others = sum(
        top_features(*shares, threshold, 80).tolist() != theirs["features"][str(threshold)]
        for threshold in _THRESHOLDS
    )
    differences = []
    for (forget, retain), score in zip(_ACCURACIES, theirs["scores"], strict=True):
        best = least_accuracy(np.array(forget), np.array(retain))
        differences.append(abs((0.0 if best is None else 1 - forget[best]) - score))
    orders = [(0, 1, 2, 3), (3, 1, 0, 2)]
    prompts = sum(
        f"{question_text(_QUESTION, o)}\nAnswer:" != p for o, p in zip(orders, theirs["prompts"], strict=True)
    )
    return [
        Compared("unlearning: chosen features, two thresholds", "", others),
        Compared(f"unlearning: scores of {len(_ACCURACIES)} sweeps", "", max(differences)),
        Compared("unlearning: questions as they are asked", "", prompts),
    ]


def _share(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


if __name__ == "__main__":
    sys.exit(main())
