"""Targeted probe perturbation (TPP): do a class's features carry that class alone (docs/spec/probing.md#tpp)?

For each class, a linear probe w_c of the class against the rest is trained on the mean-pooled activations. Then

    effect_i(c)  = max(0, (mean effective(f)_i over the class - over the rest) * (d_i . w_c))    on the training texts
    S_n(c)       = the n features with the largest effect
    drop(c, c')  = accuracy of probe c' on the test texts - its accuracy with the features S_n(c) ablated
    tpp_n        = mean over c of drop(c, c) - mean over c' != c of drop(c, c')

Ablating S turns each activation into x_t - decode(f_t) + decode(f_t without S) = x_t - s_t sum_{i in S} f_ti d_i, like
`interventions.splice` with the error term. Pooling is linear, so the text's vector loses
sum_{i in S} effective(f)_i d_i (see `pooled`), and no activation has to be decoded.

In the recommended reading, a feature without effect is never ablated, and the probes' epoch is chosen on validation
texts. SAEBench 0.6 fills S_n with features of effect 0, and chooses the epoch on the test texts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..errors import InputError
from ..saes import SAE
from .bootstrap import FloatArray, estimate, interval_method, same_units
from .columns import INTERPRETABILITY, Column
from .pooled import (
    BoolArray,
    IntArray,
    LabeledTextConfig,
    apart,
    by_text,
    mean_difference,
    one_vs_rest,
)
from .pooled_probes import LinearProbes, PooledProbeConfig, asked, fit_probes
from .record import Record, undefined
from .spec import Study
from .subject import Subject

_SHOWN = 20


@dataclass(frozen=True)
class TPPConfig(PooledProbeConfig):
    """Which texts are classified, how many features are ablated, and how the probes are trained."""

    texts: LabeledTextConfig = field(default_factory=LabeledTextConfig)
    """Which labeled texts are read."""
    n: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 500)
    """Numbers of features to ablate."""
    levels: bool = False
    """Measure each reconstruction of an SAE with several layers too: of a tree with the features of layers 0 to l, of
    an HSAE with those of level l alone."""

    def __post_init__(self) -> None:
        if not self.n or min(self.n) < 1 or len(set(self.n)) < len(self.n):
            raise InputError(f"tpp.n = {list(self.n)}: expected different numbers of 1 or more")
        self.check("tpp")


def tpp_score(drop: FloatArray) -> FloatArray:
    """TPP `[...]` from `drop [..., C, C]`: the accuracy that probe c' (last) loses without class c's features."""
    n_classes = drop.shape[-1]
    own = np.trace(drop, axis1=-2, axis2=-1)
    others = drop.sum((-2, -1)) - own
    return own / n_classes - others / (n_classes * (n_classes - 1))


def effects(difference: FloatArray, along: FloatArray) -> FloatArray:
    """Each feature's effect `[F]`: its mean difference between the class and the rest times d_i . w, at least 0."""
    return np.maximum(difference * along, 0)


def ablated(effect: FloatArray, n: int) -> IntArray:
    """Up to n features with the largest effects above 0, largest first; ties go to the lower id."""
    ranked = np.argsort(-effect, kind="stable")[:n]
    return ranked[effect[ranked] > 0]


def train_probes(
    x: FloatArray, train: IntArray, check: IntArray, config: TPPConfig, seed: int
) -> LinearProbes:
    """Train a probe for each class on the texts `train [C, a]` of `x [n, d]`, its epoch chosen on `check [C, b]`."""
    return fit_probes(x, *one_vs_rest(train, seed), *one_vs_rest(check, seed), config, seed)


def _candidates(sae: SAE, config: TPPConfig) -> dict[str, BoolArray]:
    """Which features can be ablated, by what follows the number of features in the name of a value."""
    found = {"": sae.in_reconstruction.cpu().numpy()}
    layers = sae.reconstruction
    for level in range(layers.last + 1) if config.levels else ():
        mine = np.zeros(sae.d_sae, dtype=bool)
        mine[slice(*layers.features(level))] = True
        found[f"_level_{level}"] = mine
    return found


def tpp(subject: Subject, config: TPPConfig) -> Record:
    """The record "tpp".

    A value `tpp_<n>` says how much more accuracy a class loses without its n features than the other classes lose.
    `detail["classes"]` has an entry for each class: its `label`, the `accuracy` of its probe, the `features` with the
    largest effects (at most 20), their `effects`, and `helpful`, the number of features with an effect above 0.
    `detail["drop"]["<n>"]` is the C x C table of drop(c, c'), with one row for each ablated class c.
    With `config.levels`, `tpp_<n>_level_<l>` is the same with only the features of one reconstruction.

    If each layer of the SAE reconstructs alone (HSAE), only features of the last layer can be ablated, because only
    they form the reconstruction. Raises InputError if the texts cannot be used (see `read_texts`).
    """
    texts, code = subject.labeled
    effective = code.effective
    seed = config.texts.seed
    train, check = apart(texts.train, config.validation)
    if config.select_on == "test":
        train, check = texts.train, texts.test
    probes = train_probes(texts.pooled, train, check, config, seed)
    train_rows, train_own = one_vs_rest(texts.train, seed)
    test_rows, test_own = one_vs_rest(texts.test, seed)
    every = subject.sae.W_dec.detach().double().cpu().numpy() @ probes.weight.T
    logits = probes.logits(texts.pooled)
    right = (asked(logits, test_rows) > 0) == test_own
    n_classes, n_texts = len(right), texts.test.size
    weight_of = by_text(test_rows, np.ones(right.shape), texts.test)
    values: dict[str, FloatArray] = {}  # by name: what each text contributes to each drop
    why: dict[str, str] = {}
    classes: list[dict[str, Any]] = []
    for level, candidates in _candidates(subject.sae, config).items():
        along = np.where(candidates[:, None], every, 0)
        names = {n: f"tpp_{n}{level}" for n in config.n}
        few = f"only {int(candidates.sum())} features take part in the reconstruction"
        why |= {name: few for n, name in names.items() if n > candidates.sum()}
        kept = {
            name: np.zeros((n_classes, *right.shape), dtype=bool)
            for name in names.values()
            if name not in why
        }
        for c, label in enumerate(texts.classes):
            effect = effects(mean_difference(effective[train_rows[c]], train_own), along[:, c])
            ranked = ablated(effect, len(effect))
            for n, name in names.items():
                if name in kept:
                    lost = effective[:, ranked[:n]] @ along[ranked[:n]]
                    kept[name][c] = (asked(logits - lost, test_rows) > 0) == test_own
            if not level:
                classes.append(
                    {
                        "label": label,
                        "accuracy": float(right[c].mean()),
                        "features": ranked[:_SHOWN].tolist(),
                        "effects": effect[ranked[:_SHOWN]].tolist(),
                        "helpful": len(ranked),
                    }
                )
        for name, still in kept.items():
            values[name] = by_text(test_rows, right.astype(np.float64) - still, texts.test)

    def drops(weights: FloatArray, name: str) -> FloatArray:
        """drop(c, c') for each resample: `[b, C, C]`."""
        total = (weights @ values[name].reshape(-1, n_texts).T).reshape(len(weights), n_classes, n_classes)
        return total / (weights @ weight_of.T)[:, None, :]

    def scores(weights: FloatArray) -> dict[str, FloatArray]:
        return {name: tpp_score(drops(weights, name)) for name in values}

    found = estimate(scores, n_texts, same_units("test texts", weight_of))
    value = {name: found.value.get(name) for name in [*values, *why]}
    once = np.ones((1, n_texts))
    return Record(
        "tpp",
        value,
        {name: found.interval.get(name) for name in value},
        unit="accuracy",
        tokens=int(texts.count.sum()),
        settings={
            **subject.settings,
            **texts.settings,
            "config": asdict(config),
            "code": "times the scale of its token, in the units of the activations",
            "ablation": "features to zero, the error of the reconstruction kept",
            "interval_method": interval_method("test texts") + "; probes and features held fixed",
        },
        detail={
            "null": undefined(value, why, len(texts.x)),
            "classes": classes,
            "drop": {name.removeprefix("tpp_"): drops(once, name)[0].tolist() for name in values},
        },
        replicates=found.replicates,
    )


SPEC = Study(
    name="tpp",
    needs=frozenset({"labeled_texts"}),
    transcoders=False,  # it compares decoder rows with input activations
    sets=("saebench",),
    config=TPPConfig,
    readings={"saebench_0.6": TPPConfig(texts=LabeledTextConfig(train=4000, test=1000), select_on="test")},
    run=tpp,
    columns=(Column(INTERPRETABILITY, "tpp_20", "TPP, 20 features", "↑"),),
    version=2,
)
