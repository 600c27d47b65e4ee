"""Attribution: how much each feature, and each edge of a forest, adds to a metric of the language model's predictions.

With f_ti the value of feature i at token t, m the metric as a function of all values while the reconstruction error is
kept, the attribution is

    gradient     A_ti = f_ti dm/df_ti (f)
    integrated   A_ti = f_ti * integral over a from 0 to 1 of dm/df_ti (a f)        (Sundararajan et al. 2017)

Integrated gradients add up to m(f) - m(0), the metric with all features less that with none; the gradient alone is
what a small change would do, in proportion. The attribution of an edge is that of all features below it: of its child
and the child's descendants, which ablating the child in a gated SAE silences. So the attribution of a subtree is that
of its root and of the edges to the root's children.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from ..errors import InputError
from ..lm import LanguageModel
from ..lm.hooks import ForwardPass
from ..lm.model import next_token_losses
from ..saes import SAE
from ..sparse_code import SparseCode
from ..structure.forest import Forest
from .edits import ablate
from .splice import put
from .steer import Where, reader_of, steer

Metric = Callable[[Tensor], Tensor]
"""A function from logits `[batch, ctx, vocab]` to one number."""
Method = Literal["gradient", "integrated"]


@dataclass(frozen=True)
class Attribution:
    """Attributions of features to a metric.

    code:   the attribution in place of each value of the code, `[batch, ctx, k]`; 0 at positions that are left out.
    metric: the metric with all features.
    without: the metric with none.
    """

    code: SparseCode
    metric: float
    without: float

    def by_feature(self, d_sae: int) -> Float64[Tensor, "d_sae"]:
        """The attribution of each feature, summed over all positions."""
        sums = torch.zeros(d_sae, dtype=torch.float64)
        return sums.index_add_(0, self.code.ids.flatten().cpu(), self.code.values.flatten().double().cpu())

    def by_subtree(self, forest: Forest) -> Float64[Tensor, "d_sae"]:
        """The attribution of each feature and all below it, which is that of the edge from its parent."""
        sums = self.by_feature(forest.d_sae)
        for depth in range(int(forest.depth.max()), 0, -1):
            at = (forest.depth == depth).nonzero().flatten()
            sums.index_add_(0, forest.parent[at], sums[at])
        return sums

    def by_edge(self, forest: Forest) -> Float64[Tensor, "n_edges"]:
        """The attribution of each of `forest.edges`."""
        return self.by_subtree(forest)[forest.edges[1]]


def attribute(
    lm: LanguageModel,
    sae: SAE,
    ids: Int[Tensor, "batch ctx"],
    metric: Metric,
    where: Where | None = None,
    *,
    method: Method = "integrated",
    steps: int = 16,
    site: str | None = None,
) -> Attribution:
    """The attribution of an SAE's features to a metric on some texts.

    metric: a function from logits `[batch, ctx, vocab]` to one number, such as `logit_difference(5, 7)` or
        `text_loss(ids)`. Several texts add up if the metric sums over them.
    where: positions whose features are looked at; by default all but the first and special tokens.
    method: "integrated" takes `steps` passes of the language model there and back, "gradient" one.
    site: as in `saeforest.steer`.

    Raises InputError for an unknown method or fewer than one step, and if the SAE does not fit the model and site.

    Example:
        >>> from saeforest.interventions.attribution import attribute, logit_difference
        >>> def strongest(lm, sae, ids, answer, other):
        ...     found = attribute(lm, sae, ids, logit_difference(answer, other))
        ...     return found.by_feature(sae.d_sae).abs().argsort(descending=True)[:5]
    """
    if method not in get_args(Method):
        raise InputError(f"method = {method!r}: expected {' or '.join(get_args(Method))}")
    if steps < 1:
        raise InputError(f"steps = {steps}: expected 1 or more")
    reader, where = reader_of(lm, sae, site), where or Where()
    ids = ids.to(lm.device)
    found = lm.activations(ids, [reader.site, *reader.others])
    x, y = found[reader.site.name], found[reader.written.name]
    keep = where.keep(ForwardPass(ids, ids.shape, prompt=ids.shape[1]), x, lm.special_ids)
    with torch.no_grad():
        code, stats = sae.encode_with_stats(x[keep].to(sae.device))

    def at(share: float) -> tuple[Tensor, Tensor]:
        """The metric with this share of every value, and its gradient by the values."""
        with torch.enable_grad():
            values = (share * code.values).requires_grad_()
            rows = y[keep].to(sae.device) + sae.decode_change(
                code.replace(values=values - code.values), stats
            )
            m = metric(lm.logits(ids, {reader.written: lambda _: put(y, rows, keep)}))
            (slope,) = torch.autograd.grad(m, values)
        return m.detach(), slope

    shares = [1.0] if method == "gradient" else [(i + 0.5) / steps for i in range(steps)]
    mean = torch.stack([at(share)[1].double() for share in shares]).mean(0)
    whole = torch.zeros(*ids.shape, code.ids.shape[-1], dtype=torch.float64, device=sae.device)
    places = torch.zeros_like(whole, dtype=torch.int64)
    kept = keep.to(sae.device)
    whole[kept], places[kept] = mean * code.values.double(), code.ids
    return Attribution(SparseCode(whole, places), float(at(1.0)[0]), float(at(0.0)[0]))


def logit_difference(answer: int, other: int) -> Metric:
    """The logit of one token less that of another after the last position, summed over texts."""
    return lambda logits: (logits[:, -1, answer].double() - logits[:, -1, other]).sum()


def next_log_probability(token: int) -> Metric:
    """The log probability, in nats, of a token after the last position, summed over texts."""
    return lambda logits: logits[:, -1].double().log_softmax(-1)[:, token].sum()


def text_loss(ids: Int[Tensor, "batch ctx"]) -> Metric:
    """The cross-entropy of the texts themselves, in nats, summed over all tokens after the first."""
    return lambda logits: next_token_losses(logits, ids).sum()


@torch.no_grad()
def ablation_effects(
    lm: LanguageModel,
    sae: SAE,
    ids: Int[Tensor, "batch ctx"],
    metric: Metric,
    ablated: Sequence[Sequence[int]],
    where: Where | None = None,
    *,
    site: str | None = None,
) -> Float64[Tensor, "m"]:
    """What each set of features truly adds to a metric: the metric as it is, less that with the set ablated.

    It takes a pass of the language model for every set, and is what attributions are estimates of: of features for sets
    of one (without the features below), of an edge for all features below it.
    """
    clean = metric(lm.logits(ids))
    effects = []
    for features in ablated:
        with steer(lm, sae, [ablate(features)], where, closed=False, site=site):
            effects.append(float(clean) - float(metric(lm.logits(ids))))
    return torch.tensor(effects, dtype=torch.float64)
