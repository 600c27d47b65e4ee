"""How long SCR's probes have to train: accuracies and losses by the number of texts and epochs, and by how an epoch is
chosen.

    python -m benchmarks.scr_probes RUN [--train 800] [--test 200]

Reads the texts of the measure `scr` once at the run's site. For each number of training texts of a class, and of
epochs, the probes of every pair of labels are trained on four fifths of them, and their epoch is chosen on the rest:
the first of the highest accuracy, or of these the one of the smallest loss. Printed are means over pairs: accuracies of
w_label and w_second on the test texts, and the loss of all three probes on the texts on which the epoch was chosen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from saeforest.measures.pooled import ReadTexts, apart, read_texts
from saeforest.measures.pooled_probes import asked, fit_probes
from saeforest.measures.scr import ScrConfig, TwoLabelTextConfig, balanced
from saeforest.run_folder import RunFolder
from saeforest.session import open_reader

_PER_CLASS, _EPOCHS = (10, 20, 50, 100), (20, 60, 200)
_CHOICES = {False: "first of several", True: "smallest loss"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Training of SCR's probes.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--train", type=int, default=800, help="number of training texts of all classes")
    parser.add_argument("--test", type=int, default=200)
    args = parser.parse_args()
    run = RunFolder(args.run)
    reader = open_reader(run.load(run.names()[0])[0])
    texts = read_texts(reader, TwoLabelTextConfig(train=args.train, test=args.test))
    print(
        "| training texts | epochs | "
        + " | ".join(f"{name}: label, second, loss" for name in _CHOICES.values())
        + " |"
    )
    for n in sorted({min(n, texts.train.shape[1]) for n in _PER_CLASS}):
        for epochs in _EPOCHS:
            cells = []
            for by_loss in _CHOICES:
                pairs = [trained(texts, first, n, epochs, by_loss=by_loss) for first in range(0, 16, 4)]
                found = np.mean(pairs, axis=0)
                cells.append(", ".join(f"{value:.2f}" for value in found))
            print(f"| {n} | {epochs} | {' | '.join(cells)} |", flush=True)


def trained(texts: ReadTexts, first: int, n: int, epochs: int, *, by_loss: bool) -> list[float]:
    """Of the pair of labels whose classes begin with `first`: accuracies of w_label and w_second, and the loss."""
    config, pooled = ScrConfig(epochs=epochs), texts.pooled
    fit, check = apart(texts.train[first : first + 4, :n], config.validation)
    probes = fit_probes(pooled, *balanced(fit), *balanced(check), config, texts.config.seed, by_loss=by_loss)
    test = texts.test[first : first + 4]
    quadrant = np.arange(4).repeat(test.shape[1])
    says = probes.logits(pooled[test.ravel()]) > 0
    rows, own = balanced(check)
    logits = asked(probes.logits(pooled), rows)
    loss = np.logaddexp(0, np.where(own, -logits, logits)).mean()
    return [
        float((says[:, 0] == (quadrant < 2)).mean()),
        float((says[:, 1] == (quadrant % 2 == 0)).mean()),
        float(loss),
    ]


if __name__ == "__main__":
    main()
