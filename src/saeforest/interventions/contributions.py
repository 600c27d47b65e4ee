"""Which features and edges a prediction comes from: the largest attributions, checked by ablation.

The check has a null. As many other active features are ablated too, chosen at random: if they change the metric as
much, attribution has found nothing. An edge stands for its child and all below it, so its attribution regroups those of
features; that it is large does not say that the two belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..lm import LanguageModel
from ..saes import SAE
from ..structure.forest import Forest
from ..text.ids import encode
from .attribution import (
    Attribution,
    Method,
    Metric,
    ablation_effects,
    attribute,
    logit_difference,
    next_log_probability,
    text_loss,
)
from .steer import Where, reader_of

_PLACES = 3
# Fewer pairs have no correlation worth a number.
_LEAST = 3


@dataclass(frozen=True)
class Place:
    """A token of the prompt, and a feature's attribution there."""

    position: int
    token: str
    attribution: float


@dataclass(frozen=True)
class Contribution:
    """What a feature, or an edge with all that is below its child, adds to the metric.

    feature: number of the feature; of an edge, its child. path: from the topmost ancestor down to it.
    attribution: by gradients. ablation: the metric less that with it ablated.
    places: where in a prompt the largest parts of a feature's attribution are.
    """

    feature: int
    path: tuple[int, ...]
    attribution: float
    ablation: float
    places: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Faithfulness:
    """Attributions beside ablation.

    n: number of features or edges that were ablated: those of the largest attributions, and as many others at random.
    correlation, same_sign: of the attribution and the effect of ablation, over all `n`; None if undefined.
    largest, others: mean size of the effect of ablating one of the former, and, which is the null, of the latter.
    """

    n: int
    correlation: float | None
    same_sign: float | None
    largest: float | None
    others: float | None


@dataclass(frozen=True)
class Contributions:
    """Which features and edges a metric comes from.

    metric: its value. without: its value with all features silent, and the error of the reconstruction kept.
    total: sum of the attributions of all features, which integrated gradients alone bring to `metric - without`.
    """

    metric: float
    without: float
    total: float
    features: tuple[Contribution, ...]
    edges: tuple[Contribution, ...]
    of_features: Faithfulness
    of_edges: Faithfulness

    def to_json(self) -> dict[str, Any]:
        """As in a JSON document."""
        return asdict(self)


class Question(NamedTuple):
    """A prediction to explain. ids: `[1, ctx]`, with BOS if the SAE was trained so. target, against: next tokens."""

    ids: Int[Tensor, "1 ctx"]
    target: int
    against: int | None

    @property
    def metric(self) -> Metric:
        """The logit of the target less that of the other token, or without one its log probability."""
        if self.against is None:
            return next_log_probability(self.target)
        return logit_difference(self.target, self.against)


def question(
    lm: LanguageModel,
    sae: SAE,
    prompt: str,
    target: str | None = None,
    against: str | None = None,
    *,
    site: str | None = None,
) -> Question:
    """The question why a token comes after a prompt, rather than another one.

    target: the token as text; None for the likeliest one. site: as in `saeforest.steer`.

    Raises InputError if the prompt is empty, or one of the two is not exactly one token.
    """
    own = encode(lm.tokenizer, [prompt], special=True)[0]
    if not own:
        raise InputError("prompt: expected some text")
    bos = reader_of(lm, sae, site).bos_id
    ids = torch.tensor([[*([] if bos is None else [bos]), *own]])
    chosen = int(lm.logits(ids)[0, -1].argmax()) if target is None else _token(lm, "target", target)
    other = None if against is None else _token(lm, "against", against)
    if chosen == other:
        raise InputError(f"against {against!r}: the same token as the target; expected another one")
    return Question(ids, chosen, other)


def _token(lm: LanguageModel, name: str, text: str) -> int:
    ids = encode(lm.tokenizer, [text], special=True)[0]
    if len(ids) != 1:
        parts = ", ".join(repr(str(lm.tokenizer.decode([i]))) for i in ids[:8])
        raise InputError(
            f"{name} {text[:100]!r}: expected one token, but it is {len(ids)}{f' ({parts})' if parts else ''}; a word "
            "inside a text often begins with a space"
        )
    return ids[0]


def of_prompt(
    lm: LanguageModel, sae: SAE, asked: Question, where: Where | None = None, **options: Any
) -> Contributions:
    """The features and edges that a prediction comes from. Options are those of `of_texts`."""
    return _contributions(lm, sae, [(asked.ids, asked.metric)], where, **options)


def of_texts(
    lm: LanguageModel,
    sae: SAE,
    texts: Sequence[Int[Tensor, "1 ctx"]],
    where: Where | None = None,
    *,
    method: Method = "gradient",
    steps: int = 16,
    top: int = 10,
    seed: int = 0,
    site: str | None = None,
) -> Contributions:
    """The features and edges that raise or lower the loss of texts, in nats per token, as a mean over the texts.

    top: number of features and of edges to give, which are ablated, and as many others, chosen with `seed`.

    Other arguments, and what is raised, as in `attribution.attribute`.
    """
    asked = [(ids, _mean_loss(ids)) for ids in texts]
    return _contributions(lm, sae, asked, where, method=method, steps=steps, top=top, seed=seed, site=site)


def _mean_loss(ids: Int[Tensor, "1 ctx"]) -> Metric:
    whole = text_loss(ids)
    return lambda logits: whole(logits) / (ids.shape[1] - 1)


def _contributions(
    lm: LanguageModel,
    sae: SAE,
    asked: Sequence[tuple[Int[Tensor, "1 ctx"], Metric]],
    where: Where | None,
    *,
    method: Method = "gradient",
    steps: int = 16,
    top: int = 10,
    seed: int = 0,
    site: str | None = None,
) -> Contributions:
    found = [attribute(lm, sae, *one, where, method=method, steps=steps, site=site) for one in asked]
    forest, n = sae.forest, len(asked)
    by_feature = torch.stack([one.by_feature(sae.d_sae) for one in found]).mean(0)
    by_subtree = torch.stack([one.by_subtree(forest) for one in found]).mean(0)
    active = torch.zeros(sae.d_sae, dtype=torch.bool)
    for one in found:
        active[one.code.ids[one.code.values != 0].cpu()] = True

    def effects(sets: list[list[int]]) -> NDArray[np.float64]:
        each = [ablation_effects(lm, sae, ids, metric, sets, where, site=site) for ids, metric in asked]
        return (torch.stack(each).sum(0) / n).numpy()

    rng = np.random.default_rng(seed)
    places = _places_of(lm, asked[0][0], found[0]) if n == 1 else lambda feature: ()
    features, of_features = _largest(
        by_feature.numpy(), active, lambda f: [f], effects, forest, top, rng, places
    )
    children = active.clone()
    children[forest.parent < 0] = False
    edges, of_edges = _largest(
        by_subtree.numpy(), children, lambda f: list(forest.subtree(f)), effects, forest, top, rng
    )
    metric, without = (
        float(np.mean([getattr(one, name) for one in found])) for name in ("metric", "without")
    )
    return Contributions(metric, without, float(by_feature.sum()), features, edges, of_features, of_edges)


def _largest(
    attribution: Float64[np.ndarray, "d_sae"],
    candidates: Tensor,
    ablated: Callable[[int], list[int]],
    effects: Callable[[list[list[int]]], NDArray[np.float64]],
    forest: Forest,
    top: int,
    rng: np.random.Generator,
    places: Callable[[int], tuple[Place, ...]] = lambda feature: (),
) -> tuple[tuple[Contribution, ...], Faithfulness]:
    """The candidates of largest attribution with the effect of ablating them, and how faithful that is."""
    ids = candidates.nonzero().flatten().numpy()
    order = ids[np.argsort(-np.abs(attribution[ids]), kind="stable")]
    chosen = np.concatenate([order[:top], rng.permutation(order[top:])[:top]])
    effect = effects([ablated(f) for f in chosen.tolist()]) if len(chosen) else np.zeros(0)
    shown = tuple(
        Contribution(f, tuple(forest.path(f)), float(attribution[f]), float(effect[i]), places(f))
        for i, f in enumerate(chosen[:top].tolist())
    )
    return shown, faithfulness(attribution[chosen], effect, len(shown))


def faithfulness(
    attribution: Float64[np.ndarray, "n"], effect: Float64[np.ndarray, "n"], n_largest: int
) -> Faithfulness:
    """Attributions beside the effects of ablation, of which the first `n_largest` are of the largest attributions."""
    varied = len(effect) >= _LEAST and np.ptp(attribution) > 0 and np.ptp(effect) > 0
    size = np.abs(effect)
    return Faithfulness(
        n=len(effect),
        correlation=float(np.corrcoef(attribution, effect)[0, 1]) if varied else None,
        same_sign=float((np.sign(attribution) == np.sign(effect)).mean()) if len(effect) else None,
        largest=float(size[:n_largest].mean()) if n_largest else None,
        others=float(size[n_largest:].mean()) if len(effect) > n_largest else None,
    )


def _places_of(
    lm: LanguageModel, ids: Int[Tensor, "1 ctx"], found: Attribution
) -> Callable[[int], tuple[Place, ...]]:
    """A function that gives the positions of a feature's largest attributions."""
    tokens = [str(lm.tokenizer.decode([i])) for i in ids[0].tolist()]
    values, features = found.code.values[0].cpu(), found.code.ids[0].cpu()

    def places(feature: int) -> tuple[Place, ...]:
        at = (values * (features == feature)).sum(-1)
        order = at.abs().argsort(descending=True, stable=True)[:_PLACES].tolist()
        return tuple(Place(i, tokens[i], float(at[i])) for i in order if at[i])

    return places
