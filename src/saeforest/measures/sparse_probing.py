"""How well a few features tell the topic of a text (SAEBench's sparse probing: docs/spec/probing.md#sparse-probing).

Each class is told from the rest, with equally many texts of the class and of all others together. For each class and k:

    features   the k features with the largest |mean pooled(f)_i over the class - over the rest| on the training texts
    sae_top_k  test accuracy of a logistic regression on these features; mean over the classes
    llm_top_k  the same with k coordinates of the language model's activations
    llm_all    the same with all coordinates, standardized; the regularization is chosen on validation texts

The probes are scikit-learn's `LogisticRegression(C=1, max_iter=1000)`. SAEBench chooses the epoch of its probe on all
coordinates by test accuracy; nothing is chosen on test texts here. Chance is 0.5.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from ..errors import InputError
from ..progress import progress
from .bootstrap import FloatArray, estimate, interval_method, same_units
from .columns import INTERPRETABILITY, Column
from .pooled import (
    BoolArray,
    IntArray,
    LabeledTextConfig,
    apart,
    by_text,
    check_share,
    mean_difference,
    one_vs_rest,
)
from .record import Record, undefined
from .spec import Study
from .subject import Subject

#: Values of scikit-learn's C for the probe on all coordinates, from strong regularization to weak.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class SparseProbingConfig:
    """Which texts are probed, and with how many features."""

    texts: LabeledTextConfig = field(default_factory=LabeledTextConfig)
    """Which labeled texts are read."""
    k: tuple[int, ...] = (1, 2, 5)
    """Numbers of features to train probes on."""
    levels: bool = False
    """Probe each reconstruction of an SAE with several layers too: of a tree the features of layers 0 to l, of an HSAE
    those of level l alone."""
    validation: float = 0.2
    """Fraction of the training texts held out to choose the regularization of the probe on all activations."""

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1 or len(set(self.k)) < len(self.k):
            raise InputError(f"sparse_probing.k = {list(self.k)}: expected different numbers of 1 or more")
        check_share("sparse_probing.validation", self.validation)


def top_dimensions(difference: FloatArray, k: int) -> IntArray:
    """The k dimensions with the largest absolute difference, largest first; ties go to the lower one."""
    return np.argsort(-np.abs(difference), kind="stable")[:k]


def sparse_probing(subject: Subject, config: SparseProbingConfig) -> Record:
    """The record "sparse_probing".

    The values `sae_top_<k>`, `llm_top_<k>` and `llm_all` are test accuracies, averaged over the classes.
    `detail["classes"]` has an entry for each class: its `label`, its accuracy for each value, its `features` for the
    largest k, best first, and `strength`, scikit-learn's C chosen for llm_all.

    Raises InputError if the texts cannot be used (see `read_texts`).
    """
    texts, code = subject.labeled
    # By the names of their values, in which {} stands for k.
    pooled: dict[str, Any] = {"sae_top_{}": code.raw, "llm_top_{}": texts.pooled}
    layers = subject.sae.reconstruction
    for level in range(layers.last + 1) if config.levels else ():
        first, end = layers.features(level)
        pooled[f"sae_top_{{}}_level_{level}"] = csr_array(code.raw[:, first:end])
    seed = config.texts.seed
    train, train_own = one_vs_rest(texts.train, seed)
    test, test_own = one_vs_rest(texts.test, seed)
    (fit, fit_own), (check, check_own) = (
        one_vs_rest(part, seed) for part in apart(texts.train, config.validation)
    )
    names = [of.format(k) for of in pooled for k in config.k] + ["llm_all"]
    right: dict[str, list[BoolArray]] = {name: [] for name in names}
    classes: list[dict[str, Any]] = []
    with progress("sparse probing", len(texts.classes), "classes") as advance:
        for c, label in enumerate(texts.classes):
            entry: dict[str, Any] = {"label": label}
            for of, x in pooled.items():
                ranked = top_dimensions(mean_difference(x[train[c]], train_own), max(config.k))
                few = _dense(x[:, ranked])
                for k in config.k:
                    if k <= x.shape[1]:
                        said = _probe(few[train[c], :k], train_own, few[test[c], :k])
                        right[of.format(k)].append(said == test_own)
                if x is code.raw:
                    entry["features"] = ranked.tolist()
            tuning = _standardized(texts.pooled, fit[c], fit_own, check[c])
            tried = [float((_probe(*tuning, strength) == check_own).mean()) for strength in STRENGTHS]
            entry["strength"] = STRENGTHS[tried.index(max(tried))]
            said = _probe(*_standardized(texts.pooled, train[c], train_own, test[c]), entry["strength"])
            right["llm_all"].append(said == test_own)
            classes.append(entry | {name: float(found[c].mean()) for name, found in right.items() if found})
            advance(1)
    asked = by_text(test, np.ones(test.shape), texts.test)
    answered = {
        name: by_text(test, np.stack(found).astype(np.float64), texts.test)
        for name, found in right.items()
        if found
    }

    def accuracy(weights: FloatArray) -> dict[str, FloatArray]:
        return {name: (weights @ found.T / (weights @ asked.T)).mean(1) for name, found in answered.items()}

    found = estimate(accuracy, texts.test.size, same_units("test texts", asked))
    value = {name: found.value.get(name) for name in names}
    why = {
        of.format(k): f"there are only {x.shape[1]} dimensions" for of, x in pooled.items() for k in config.k
    }
    return Record(
        "sparse_probing",
        value,
        {name: found.interval.get(name) for name in names},
        unit="fraction",
        tokens=int(texts.count.sum()),
        settings={
            **subject.settings,
            **texts.settings,
            "config": asdict(config),
            "code": "as the SAE gives it",
            "interval_method": interval_method("test texts") + "; probes held fixed",
        },
        detail={"null": undefined(value, why, len(texts.x)), "classes": classes},
        replicates=found.replicates,
    )


def _dense(x: FloatArray | csr_array) -> FloatArray:
    return np.asarray(x.todense() if isinstance(x, csr_array) else x, dtype=np.float64)


def _standardized(
    x: FloatArray, train: IntArray, own: BoolArray, test: IntArray
) -> tuple[FloatArray, BoolArray, FloatArray]:
    """Arguments of `_probe`, with every coordinate scaled to mean 0 and variance 1 on the training rows."""
    mean, std = x[train].mean(0), x[train].std(0)
    std[std == 0] = 1
    return (x[train] - mean) / std, own, (x[test] - mean) / std


def _probe(x: FloatArray, own: BoolArray, x_test: FloatArray, strength: float = 1.0) -> BoolArray:
    """Whether a logistic regression trained on `x` assigns each test text to the class."""
    # Slow to import, and the settings of all measures are read for `saeforest eval --help`.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # After 1000 iterations a probe is used as it is, as in SAEBench.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=1000).fit(x, own).predict(x_test)


SPEC = Study(
    name="sparse_probing",
    needs=frozenset({"labeled_texts"}),
    sets=("saebench",),
    config=SparseProbingConfig,
    readings={"saebench_0.6": SparseProbingConfig(texts=LabeledTextConfig(train=4000, test=1000))},
    run=sparse_probing,
    columns=(
        Column(INTERPRETABILITY, "sae_top_1", "sparse probing, top 1", "↑"),
        Column(INTERPRETABILITY, "sae_top_5", "sparse probing, top 5", "↑"),
    ),
    version=2,
)
