"""Feature absorption and splitting on first letters: SAEBench 0.6.0 and the Tree SAE paper (docs/spec/absorption.md).

A feature for "begins with S" is silent on some words that do, because more specific features have absorbed it. Let w be
the unit direction of the letter's ground-truth probe, x the activation on one of the letter's words, f_i its code, and

    P = x . w    c_i = cos(w, d_i)    p_i = f_i c_i    M = sum of p_i over the letter's main features
    A = sum of the 3 largest p_i > 0 with c_i >= 0.1 that are not main    a = min(A, P - M)

    absorption fraction   0 if M >= P or A / P < 0.4, else 1 if M <= 0, else a / (a + M)
    full absorption       every main feature is silent, and the feature j with the largest p_j has c_j >= 0.025 and
                          p_j / P >= 0.4

Both are 0 if P <= 0. The words are held out of training, and the ground-truth probe must recognize their letter. A
letter's main features are found by k-sparse probing: one L1 probe on all features ranks them by weight, a logistic
regression is trained on the first k = 1, 2, ... of them, and k grows as long as each step raises the F1 on held-out
words by more than 0.03. The number of main features is the letter's splitting.

To compare p_i with P, f_i must be in the units of x: std_t f_i |d_i| for an SAE that normalizes each token. The authors
of the Tree SAE take f_i as it is, and always read x for these scores at `blocks.L.hook_resid_post`, where L is the
site's block (docs/spec/absorption.md#units). The record has both readings.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from ..errors import require
from ..saes import SAE
from ..sparse_code import SparseCode, concat_rows
from .bootstrap import Estimate, FloatArray, estimate, interval_method, same_units
from .columns import FLAT, Column
from .first_letters import (
    LETTERS,
    FirstLetterConfig,
    FirstLetters,
    TooFewWords,
    f1_scores,
    resid_post,
    train_probe,
)
from .record import Record
from .spec import Study
from .subject import Subject

Units = Literal["effective", "raw"]
# Penalties of the L1 probe.
_L1, _WEIGHT_DECAY = 0.01, 1e-6
_SILENT = 1e-8
_ENCODED_ROWS = 4096
_ABSORBERS = 5
_ABSORBED = ("mean_absorption_fraction", "full_absorption")
_ABSORBED_RESID_POST = tuple(f"{name}_resid_post" for name in _ABSORBED)
_SPLIT = ("splitting", "splitting_spelling")


@dataclass(frozen=True)
class AbsorptionConfig(FirstLetterConfig):
    """Settings of feature absorption: SAEBench's, but with fewer words, so that a CPU takes only minutes."""

    sparse_batch: int = 512
    """Batch size, in words, for training the L1 probe on SAE features. SAEBench's 4096 on ten times as many words
    gives about as many steps."""
    max_k: int = 10
    """Maximum number of features that one letter can be split into."""
    f1_jump: float = 0.03
    """Minimum gain in F1 for one more feature to count as a main feature of the letter."""
    min_probe_f1: float = 0.6
    """F1 that a letter's ground-truth probe must exceed for the letter to be scored."""
    min_letters: int = 20
    """Report no result if fewer letters than this can be scored."""
    full_cosine: float = 0.025
    """Minimum cosine between a feature and the letter's direction to count as full absorption."""
    fraction_cosine: float = 0.1
    """Minimum cosine between a feature and the letter's direction to count in the absorption fraction."""
    projection: float = 0.4
    """Minimum fraction of a word's projection onto the letter's direction that absorbing features must explain."""
    max_absorbing: int = 3
    """Maximum number of absorbing features that the absorption fraction adds up for a word."""
    levels: bool = False
    """Measure each reconstruction of an SAE with several layers too: of a tree the features of layers 0 to l, of an
    HSAE those of level l alone. Each takes about as long as the measure itself, but for reading the words."""
    units: Units = "effective"
    """Units of feature activations. effective: those of the language model's activations; raw: as the SAE returns
    them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sparse_batch", "max_k", "max_absorbing"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        for name in ("f1_jump", "min_probe_f1"):
            self._check(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in ("full_cosine", "fraction_cosine", "projection"):
            self._check(name, 0 < getattr(self, name) <= 1, "above 0 and at most 1")
        self._check("min_letters", 1 <= self.min_letters <= len(LETTERS), f"1 to {len(LETTERS)}")

    @classmethod
    def saebench(cls) -> AbsorptionConfig:
        """Settings of SAEBench 0.6.0, with a seed: all words, codes as the SAE returns them, BOS in every prompt."""
        return cls(words=None, sparse_batch=4096, units="raw", bos="always")

    @classmethod
    def reference(cls) -> AbsorptionConfig:
        """Settings of the Tree SAE's authors. Compare their numbers with the values that end in `_resid_post`."""
        return cls(words=None, sparse_batch=4096, min_probe_f1=0.4, units="raw", bos="always")


# -- the scores


class WordScores(NamedTuple):
    """Scores of `n` words.

    fraction:  absorption fraction.
    full:      whether absorption is full.
    absorbers: features that A adds up, the largest first, padded with -1.
    """

    fraction: Float64[Tensor, "n"]
    full: Bool[Tensor, "n"]
    absorbers: Int[Tensor, "n max_absorbing"]


class KSparse(NamedTuple):
    """A letter's features, the largest weight first, and the F1 of probes on the first 1, 2, ... of them."""

    features: list[int]
    f1: list[float]


def split_features(f1: Sequence[float], jump: float = 0.03) -> int:
    """Number of main features: how often in a row the F1 of probes on the first k = 1, 2, ... rises by over `jump`."""
    count, before = 0, -100.0
    for score in f1:
        if not score > before + jump:
            break
        count, before = count + 1, score
    return count


def absorption_of(
    values: Float[Tensor, "n k"],
    cosine: Float[Tensor, "n k"],
    main: Bool[Tensor, "n k"],
    ids: Int[Tensor, "n k"],
    projection: Float[Tensor, "n"],
    config: AbsorptionConfig,
) -> WordScores:
    """The module's formulas, for the active features of `n` words. An unused slot has value 0.

    values:     f_i.
    cosine:     c_i.
    main:       whether each is a main feature of the word's letter.
    ids:        feature ids.
    projection: P of each word.
    """
    values, cosine, projection = values.double(), cosine.double(), projection.double()
    p = values * cosine
    main_sum = torch.where(main, p, 0).sum(1)
    absorbing = torch.where(~main & (cosine >= config.fraction_cosine), p.clamp(min=0), 0)
    best = absorbing.topk(min(config.max_absorbing, p.shape[1]))
    absorbed = best.values.sum(1)

    def enough(share: Tensor) -> Tensor:
        # Check P > 0 first: at P = 0 the papers' quotient is infinite or undefined.
        return (projection > 0) & (share / torch.where(projection > 0, projection, 1) >= config.projection)

    used = torch.minimum(absorbed, projection - main_sum)
    fraction = torch.where(main_sum <= 0, 1.0, used / (used + main_sum)).clamp(0, 1)
    fraction = torch.where((main_sum < projection) & enough(absorbed), fraction, 0.0)

    silent = torch.where(main, values, 0).amax(1) < _SILENT
    top, slot = p.max(1)
    aligned = cosine.gather(1, slot[:, None])[:, 0] >= config.full_cosine
    absorbers = torch.where(best.values > 0, ids.gather(1, best.indices), -1)
    absorbers = F.pad(absorbers, (0, config.max_absorbing - absorbers.shape[1]), value=-1)
    return WordScores(fraction, silent & aligned & enough(top), absorbers)


def absorption_scores(
    code: SparseCode,
    x: Float[Tensor, "n d_in"],
    letter: Int[Tensor, "n"],
    directions: Float[Tensor, "26 d_in"],
    decoder: Float[Tensor, "d_sae d_in"],
    mains: dict[int, list[int]],
    config: AbsorptionConfig,
) -> WordScores:
    """Absorption on words `x` that begin with `letter` (0 to 25), all on the CPU.

    code:       the words' code, in the units of `x` for unit decoder rows (see `encode_words`).
    directions: directions of the letters' ground-truth probes, of any length.
    mains:      main features of every letter that occurs among the words.
    """
    directions = F.normalize(directions.double())
    cosine = directions.float() @ F.normalize(decoder.float()).T
    is_main = torch.zeros(cosine.shape, dtype=torch.bool)
    for own, features in mains.items():
        is_main[own, features] = True
    own = letter[:, None]
    return absorption_of(
        code.values,
        cosine[own, code.ids],
        is_main[own, code.ids],
        code.ids,
        (x.double() * directions[letter]).sum(1),
        config,
    )


@torch.no_grad()
def encode_words(sae: SAE, x: Float[Tensor, "n d_in"], units: Units, level: int | None = None) -> SparseCode:
    """The code of words, on the CPU.

    units: "raw" for f_i; "effective" for std_t f_i |d_i|, the lengths of the vectors that add up to `x_hat`.
    level: only features in the reconstruction of this layer or level have values; by default of the last.

    If the SAE's layers each reconstruct alone, only one has values: several would add up to several times x.
    """
    norms = sae.W_dec.detach().norm(dim=1)
    first, end = sae.reconstruction.features(sae.reconstruction.last if level is None else level)
    codes: list[SparseCode] = []
    for part in x.split(_ENCODED_ROWS):
        code, stats = sae.encode_with_stats(part.float().to(sae.device))
        values = torch.where((code.ids >= first) & (code.ids < end), code.values, 0)
        if units == "effective":
            values = values * stats.std * norms[code.ids]
        codes.append(SparseCode(values.detach().cpu(), code.ids.cpu()))
    return concat_rows(codes)


def k_sparse(
    train: SparseCode,
    train_letter: Int[Tensor, "n"],
    test: SparseCode,
    test_letter: Int[Tensor, "m"],
    weight: Float[Tensor, "d_sae 26"],
    letters: Iterable[int],
    max_k: int,
) -> dict[int, KSparse]:
    """For each letter, the `max_k` features with the largest `weight`, and how well the first 1, 2, ... tell it.

    F1 is measured on `test`, with logistic regressions trained on `train`. Letters that `train` lacks are left out.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    found: dict[int, KSparse] = {}
    present = set(train_letter.tolist())
    for letter in (some for some in letters if some in present):
        features = weight[:, letter].topk(min(max_k, len(weight))).indices
        inputs, held_out = _columns(train, features), _columns(test, features)
        f1: list[float] = []
        for k in range(1, len(features) + 1):
            model = LogisticRegression(max_iter=500, class_weight="balanced")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(inputs[:, :k], (train_letter == letter).numpy())
            predicted = torch.from_numpy(model.decision_function(held_out[:, :k]) > 0)
            f1.append(float(f1_scores(predicted[:, None], (test_letter == letter)[:, None])))
        found[letter] = KSparse(features.tolist(), f1)
    return found


def _columns(code: SparseCode, features: Int[Tensor, "k"]) -> FloatArray:
    columns = [torch.where(code.ids == feature, code.values, 0).sum(1) for feature in features]
    return torch.stack(columns, 1).double().numpy()


# -- the measure


def absorption(subject: Subject, config: AbsorptionConfig) -> Record:
    """The record "absorption".

    Values are means over the scored letters: those whose ground-truth probe has an F1 above `min_probe_f1`. Values that
    end in `_resid_post` use activations read there, the others those at the SAE's own site. Values are null if fewer
    than `min_letters` letters can be scored, or the tokenizer has too few words. `detail["letters"]` lists the letters
    that have words to score. The language model reads the words once for all SAEs of a site.
    """
    site = str(subject.settings["site"])
    behind = resid_post(site)
    method = interval_method("letters, 26 at most, the words of each held fixed") + "; letters: none"
    settings = {
        **subject.settings,
        "config": asdict(config),
        "readings": {"site": site, "resid_post": behind},
        "interval_method": method,
    }
    try:
        data = subject.first_letters
    except TooFewWords as few:
        why = f"the tokenizer has {few.found} words of English letters; {few.least} are needed"
        names = (*_ABSORBED, *_ABSORBED_RESID_POST, *_SPLIT, "probe_f1")
        nothing = Estimate(dict.fromkeys(names), dict.fromkeys(names), {})
        return _record(nothing, 0, dict.fromkeys(names, why), 0, settings, {})

    splits = split_letters(subject.sae, data, config)
    at_site = _scores(subject.sae, data.positives.x, data, splits, config)
    table = _by_letter(at_site, data, _ABSORBED)
    null: dict[str, str] = {}
    if data.resid_post is not None:
        table |= _by_letter(
            _scores(subject.sae, data.resid_post, data, splits, config), data, _ABSORBED_RESID_POST
        )
    elif behind is None:
        null = dict.fromkeys(_ABSORBED_RESID_POST, f"the site {site} does not name a block")
    else:
        same = "the site is resid_post itself: see {}"
        null = {f"{name}_resid_post": same.format(name) for name in _ABSORBED}
    for level in range(subject.sae.reconstruction.last + 1) if config.levels else ():
        of_level = split_letters(subject.sae, data, config, level)
        scored = _scores(subject.sae, data.positives.x, data, of_level, config, level)
        table |= _by_letter(scored, data, tuple(f"{name}_level_{level}" for name in _ABSORBED))
        table |= {f"splitting_level_{level}": _n_main(of_level)}
    scores = [column for name, column in table.items() if not name.startswith("splitting")]
    require(all(((c >= 0) & (c <= 1)).all() for c in scores), "absorption", "scores from 0 to 1")
    table["splitting"] = _n_main(splits)
    table["splitting_spelling"] = table["splitting"] - 1

    counts = data.f1.numpy() > config.min_probe_f1
    n_letters = int(counts.sum())
    if n_letters < config.min_letters:
        why = f"{n_letters} letters have a probe with F1 above {config.min_probe_f1}; {config.min_letters} are needed"
        null |= dict.fromkeys(table, why)
    found = _letter_means(table, counts, data)
    n_words = sum(len(part.words) for part in (data.train, data.test, data.positives))
    detail = {
        "letters": _letter_rows(at_site, table, data, splits),
        "words": {
            "train": len(data.train.words),
            "test": len(data.test.words),
            "scored": len(data.positives.words),
        },
    }
    return _record(found, n_letters, null, n_words, settings, detail)


class Split(NamedTuple):
    """The result of k-sparse probing for a letter, and its main features."""

    probes: KSparse
    main: list[int]


def split_letters(
    sae: SAE, data: FirstLetters, config: AbsorptionConfig, level: int | None = None
) -> dict[int, Split]:
    """The main features of each letter that has words to score, among those of a level (see `encode_words`)."""
    train, test = (encode_words(sae, part.x, config.units, level) for part in (data.train, data.test))
    probe = train_probe(
        train,
        data.train.letter,
        width=sae.d_sae,
        batch=config.sparse_batch,
        epochs=config.epochs,
        weight_decay=_WEIGHT_DECAY,
        l1=_L1,
        seed=config.seed,
    )
    letters = data.positives.letter.unique().tolist()
    probes = k_sparse(train, data.train.letter, test, data.test.letter, probe.weight, letters, config.max_k)
    return {
        own: Split(found, found.features[: split_features(found.f1, config.f1_jump)])
        for own, found in probes.items()
    }


def _n_main(splits: dict[int, Split]) -> FloatArray:
    """Number of main features of each letter; 0 for one without words."""
    n_main = [len(splits[own].main) if own in splits else 0 for own in range(len(LETTERS))]
    return np.array(n_main, dtype=np.float64)


def _scores(
    sae: SAE,
    x: Float[Tensor, "n d_in"],
    data: FirstLetters,
    splits: dict[int, Split],
    config: AbsorptionConfig,
    level: int | None = None,
) -> WordScores:
    return absorption_scores(
        encode_words(sae, x, config.units, level),
        x,
        data.positives.letter,
        data.probe.directions,
        sae.W_dec.detach().cpu(),
        {own: split.main for own, split in splits.items()},
        config,
    )


def _by_letter(scores: WordScores, data: FirstLetters, names: tuple[str, ...]) -> dict[str, FloatArray]:
    """Mean absorption fraction and rate of full absorption on the words of each letter; 0 for one without words."""
    letter = data.positives.letter.numpy()
    n = np.bincount(letter, minlength=len(LETTERS)).clip(min=1)
    columns = (scores.fraction.numpy(), scores.full.double().numpy())
    return {
        name: np.bincount(letter, column, minlength=len(LETTERS)) / n
        for name, column in zip(names, columns, strict=True)
    }


def _letter_means(table: dict[str, FloatArray], counts: NDArray[np.bool_], data: FirstLetters) -> Estimate:
    """Means of the table over the letters that `counts` marks, and of the probe's F1 over all letters that occur."""
    occur = data.test.letter.unique().numpy()
    f1 = data.f1.numpy()[occur]

    def means(weights: FloatArray) -> dict[str, FloatArray]:
        counted = weights * counts[occur]
        found = {name: counted @ column[occur] / counted.sum(1) for name, column in table.items()}
        return {**found, "probe_f1": weights @ f1 / weights.sum(1)}

    return estimate(means, len(occur), same_units("letters", occur, data.test.letter))


def _letter_rows(
    scores: WordScores, table: dict[str, FloatArray], data: FirstLetters, splits: dict[int, Split]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for own, split in splits.items():
        words = data.positives.letter == own
        absorbed = words & ((scores.fraction > 0) | scores.full)
        absorbers = Counter(scores.absorbers[absorbed].flatten().tolist())
        absorbers.pop(-1, None)
        rows.append(
            {
                "letter": LETTERS[own],
                "f1_probe": float(data.f1[own]),
                "n_split": len(split.main),
                "split_features": split.main,
                "f1_by_k": split.probes.f1,
                "true_positives": int(words.sum()),
                "mean_fraction": float(table["mean_absorption_fraction"][own]),
                "full_rate": float(table["full_absorption"][own]),
                "absorbers": [{"feature": i, "count": n} for i, n in absorbers.most_common(_ABSORBERS)],
            }
        )
    return rows


def _record(
    found: Estimate,
    letters: int,
    null: dict[str, str],
    n_words: int,
    settings: dict[str, Any],
    detail: dict[str, Any],
) -> Record:
    value = {**found.value, "letters": letters, **dict.fromkeys(null)}
    return Record(
        "absorption",
        value,
        {name: None if value[name] is None else found.interval.get(name) for name in value},
        unit="fraction",
        tokens=n_words,
        settings=settings,
        detail={
            "null": null,
            "units": {
                **{name: "features" for name in value if name.startswith("splitting")},
                "letters": "letters",
                "probe_f1": "F1",
            },
            **detail,
        },
        replicates={n: drawn for n, drawn in found.replicates.items() if value[n] is not None},
    )


SPEC = Study(
    name="absorption",
    needs=frozenset({"first_letters"}),
    transcoders=False,  # it compares decoder rows with input activations
    sets=("paper", "saebench"),
    config=AbsorptionConfig,
    readings={"saebench_0.6": AbsorptionConfig.saebench(), "ref_tree_sae": AbsorptionConfig.reference()},
    run=absorption,
    columns=(
        Column(FLAT, "full_absorption", "full absorption", "↓"),
        Column(FLAT, "mean_absorption_fraction", "absorption fraction", "↓"),
        Column(FLAT, "splitting", "splitting", "↓"),
    ),
    version=2,
)
