"""Do attributions say what ablation does (docs/spec/attribution.md)?

The loss of a text is attributed to the features that are active in it, and to the edges of the forest, each with all
below its child (`interventions.attribution`). Of each text, those of the largest attributions are ablated, and as many
others that are active, chosen at random:

    correlation   of attribution and the effect of ablation, over all that were ablated
    same_sign     the share of them in which the two have the same sign
    largest       mean size of the effect of those of the largest attributions
    others        the same of the others, which is the null
    over_others   the difference

each as `features_...` and `edges_...`, over all texts. Attributions of edges are sums of those of features, so faithful
edges are no evidence of a hierarchy; they stand beside those of shuffled parents and of the untrained SAE.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from numpy import ndarray as Array
from torch import Tensor

from ..activations import ActivationReader
from ..errors import InputError
from ..interventions import Where
from ..interventions.attribution import Method, Metric, ablation_effects, attribute, text_loss
from ..lm import LanguageModel
from ..progress import progress
from ..saes import SAE
from ..structure.forest import ROOT, Forest
from .bootstrap import FloatArray, estimate, interval_method, same_units
from .record import Record, undefined
from .spec import Study
from .subject import Subject

_OF: tuple[str, ...] = ("features", "edges")
VALUES = ("correlation", "same_sign", "largest", "others", "over_others")
_SHARES = ("correlation", "same_sign")
# Fewer pairs have no correlation worth a number.
_LEAST = 3
_DIGITS = 8


@dataclass(frozen=True)
class AttributionConfig:
    """Which texts are attributed, and how many features are ablated."""

    texts: int = 12
    """Number of texts: the beginnings of windows of the measured text."""
    context: int = 32
    """Number of tokens of each text."""
    top: int = 8
    """Number of features and of edges of the largest attributions to ablate for each text, and of others at random.
    Each takes a pass of the language model over the text."""
    method: Method = "gradient"
    """Attribute by the gradient at the code as it is, or by gradients integrated from all features silent."""
    steps: int = 16
    """Number of gradients to integrate; the other method takes one."""
    dtype: Literal["float32", "run"] = "float32"
    """Compute in float32, in a copy of the language model if the run has another dtype, or as the run does. In
    bfloat16, logits are rounded to more than most features add to them."""
    seed: int = 0
    """Random seed for drawing texts and the others."""

    def __post_init__(self) -> None:
        for name, least in {"texts": 1, "context": 2, "top": 1, "steps": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise InputError(f"attribution.{name} = {getattr(self, name)}: expected {least} or more")
        for name, known in (("method", get_args(Method)), ("dtype", ("float32", "run"))):
            if getattr(self, name) not in known:
                raise InputError(
                    f"attribution.{name} = {getattr(self, name)!r}: expected {' or '.join(known)}"
                )


class Ablated(NamedTuple):
    """Attributions of features or edges of one text beside the effects of ablating them.

    feature: the feature; of an edge, its child. largest: whether it is one of the largest attributions of the text.
    """

    feature: Int[Array, "n"]
    attribution: Float64[Array, "n"]
    effect: Float64[Array, "n"]
    largest: Bool[Array, "n"]


def attribution(subject: Subject, config: AttributionConfig) -> Record:
    """The record "attribution". Intervals resample texts; `detail["texts"]` has all that was ablated of each."""
    reader, forest = subject.reader, subject.forest
    sae = _at_its_sites(subject.sae, reader)
    lm = in_float32(reader.lm) if config.dtype == "float32" else reader.lm
    where = Where("all", reader.exclude_first, reader.exclude_special, reader.max_norm)
    rng = np.random.default_rng(config.seed)
    drawn = np.sort(rng.permutation(len(subject.tokens.ids))[: config.texts])
    found: list[tuple[Ablated, Ablated]] = []
    with progress("attribute", len(drawn), "texts") as advance:
        for window in drawn.tolist():
            ids = subject.tokens.ids[window, : config.context].long()[None]
            found.append(_of_text(lm, sae, forest, ids, where, config, rng))
            advance(1)
    columns = dict(zip(_OF, zip(*found, strict=True), strict=True))

    def formula(weights: FloatArray) -> dict[str, FloatArray]:
        return {
            f"{of}_{name}": value
            for of, texts in columns.items()
            for name, value in summary(texts, weights).items()
        }

    units = same_units("texts", subject.tokens.ids[torch.from_numpy(drawn)])
    result = estimate(formula, len(drawn), units)
    why = _why(columns, forest)
    return Record(
        "attribution",
        result.value,
        result.interval,
        unit="nats per token",
        tokens=len(drawn) * min(config.context, subject.tokens.context),
        settings={
            **subject.settings,
            "config": asdict(config),
            "metric": "mean loss of the tokens of a text after the first",
            "dtype": str(lm.dtype).removeprefix("torch."),
            "interval_method": interval_method("texts"),
        },
        detail={
            "null": undefined(result.value, why, len(drawn)),
            "units": {f"{of}_{name}": "fraction" for of in _OF for name in _SHARES},
            "texts": [
                {"window": window, **{of: _listed(one) for of, one in zip(_OF, both, strict=True)}}
                for window, both in zip(drawn.tolist(), found, strict=True)
            ],
        },
        replicates=result.replicates,
    )


def in_float32(lm: LanguageModel) -> LanguageModel:
    """The language model in float32: itself, or a copy that takes four bytes for each of its weights."""
    return lm if lm.dtype == torch.float32 else replace(lm, model=copy.deepcopy(lm.model).float())


def _at_its_sites(sae: SAE, reader: ActivationReader) -> SAE:
    """The SAE with its sites in its metadata, which an untrained one has not."""
    found = copy.copy(sae)
    found.metadata = {**sae.metadata, "hook_name": reader.site.name}
    if sae.is_transcoder:
        found.metadata["hook_name_out"] = reader.written.name
    return found


def _of_text(
    lm: LanguageModel,
    sae: SAE,
    forest: Forest,
    ids: Int[Tensor, "1 ctx"],
    where: Where,
    config: AttributionConfig,
    rng: np.random.Generator,
) -> tuple[Ablated, Ablated]:
    """What was ablated of one text: features, and edges."""
    metric = _mean_loss(ids)
    found = attribute(lm, sae, ids, metric, where, method=config.method, steps=config.steps)
    active = torch.zeros(forest.d_sae, dtype=torch.bool)
    active[found.code.ids[found.code.values != 0].cpu()] = True

    def ablated(
        attributions: Float64[Tensor, "d_sae"],
        usable: Bool[Tensor, "d_sae"],
        set_of: Callable[[int], list[int]],
    ) -> Ablated:
        every, candidates = attributions.numpy(), usable.nonzero().flatten().numpy()
        order = candidates[np.argsort(-np.abs(every[candidates]), kind="stable")]
        chosen = np.concatenate([order[: config.top], rng.permutation(order[config.top :])[: config.top]])
        sets = [set_of(f) for f in chosen.tolist()]
        effect = ablation_effects(lm, sae, ids, metric, sets, where).numpy()
        return Ablated(chosen, every[chosen], effect, np.arange(len(chosen)) < min(config.top, len(order)))

    return (
        ablated(found.by_feature(forest.d_sae), active, lambda f: [f]),
        ablated(
            found.by_subtree(forest), active & (forest.parent != ROOT), lambda f: list(forest.subtree(f))
        ),
    )


def _mean_loss(ids: Int[Tensor, "1 ctx"]) -> Metric:
    whole = text_loss(ids)
    return lambda logits: whole(logits).double() / (ids.shape[1] - 1)


def summary(texts: Sequence[Ablated], weights: Float64[Array, "b texts"]) -> dict[str, FloatArray]:
    """The `VALUES` over some texts, for every row of their weights."""
    text = np.repeat(np.arange(len(texts)), [len(one.feature) for one in texts])
    a, e, largest = (np.concatenate(column) for column in list(zip(*texts, strict=True))[1:])
    w = weights[:, text]

    def mean(values: FloatArray, of: FloatArray) -> FloatArray:
        return of @ values / of.sum(1)

    def moment(x: FloatArray, y: FloatArray) -> FloatArray:
        return mean(x * y, w) - mean(x, w) * mean(y, w)

    varied = len(a) >= _LEAST and np.ptp(a) > 0 and np.ptp(e) > 0
    # Scaled, so that squares of small effects keep their digits.
    a, e = (x / max(float(np.abs(x).max(initial=0)), np.finfo(np.float64).tiny) for x in (a, e))
    size = np.abs(np.concatenate([one.effect for one in texts]))
    big, small = mean(size, w * largest), mean(size, w * ~largest)
    nothing = np.full(len(weights), np.nan)
    return {
        "correlation": moment(a, e) / np.sqrt(moment(a, a) * moment(e, e)) if varied else nothing,
        "same_sign": mean((np.sign(a) == np.sign(e)).astype(np.float64), w),
        "largest": big,
        "others": small,
        "over_others": big - small,
    }


def _why(columns: dict[str, tuple[Ablated, ...]], forest: Forest) -> dict[str, str]:
    """Why values may be undefined."""
    found: dict[str, str] = {}
    for of, texts in columns.items():
        n = sum(len(one.feature) for one in texts)
        if of == "edges" and not forest.edges.shape[1]:
            reason = "the forest has no edges: every feature hangs from the root"
        elif n < _LEAST:
            reason = f"{n} {of} are active in the texts, too few to compare"
        else:
            reason = "all active ones were among the largest, or no effect differs"
        found |= {f"{of}_{name}": reason for name in VALUES}
    return found


def _listed(one: Ablated) -> dict[str, Any]:
    return {
        "features": one.feature.tolist(),
        "attribution": [round(x, _DIGITS) for x in one.attribution.tolist()],
        "ablation": [round(x, _DIGITS) for x in one.effect.tolist()],
        "largest": int(one.largest.sum()),
    }


SPEC = Study(
    name="attribution",
    needs=frozenset({"text", "forest", "language_model"}),
    config=AttributionConfig,
    run=attribution,
    nulls=tuple(f"edges_{name}" for name in VALUES),
)
