"""Parents from data: each child of a Tree SAE hangs from the feature that is active where the child's own detector is.

The gate makes every child fire where its parent fires, whatever it has learned. What the data say is seen without it:
on the tokens where the child's own detector is on, how much more often than elsewhere is a candidate active
(docs/spec/tree-sae.md#parents-from-data)? The paper has no such rule.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor, nn

from ..errors import InputError
from ..sparse_code import SparseCode
from ..structure.forest import ROOT
from .training import RunLength

# Pairs are counted for so many children at a time that there are at most this many (child, candidate), and as many
# pairs of features in the tokens: this takes about 150 MiB.
_PART_ENTRIES = 1 << 21
# Updates of the parents, if `every` is not set, are this fraction of the run apart.
_EVERY = 0.03
# The window, if it is not set, is so long that the detector of each feature is on at this many tokens on average.
_WINDOW = 128
# A token may have this many more active features than an average one, where that has few.
_SPARE = 16


@dataclass(frozen=True)
class FromDataConfig:
    """Parents from data: the settings of `allocation.rule=data`. Not in the paper."""

    score: Literal["excess", "log_lift"] = "excess"
    """How candidates are ranked. excess: P(candidate active | child's own detector on) - P(candidate active);
    log_lift: the base-2 logarithm of the ratio of the two, which prefers rare, specific candidates."""
    earned: float = 0.0
    """Excess that an edge must have. A feature whose best candidate has no more than this hangs from the root."""
    shuffles: int = 0
    """Number of null comparisons from which each child has a threshold of its own, beyond `earned`: the largest excess
    that any candidate has with it when activations are shifted against detectors by a fraction of the window. 0: none.
    Each makes an update of the parents take as long once more."""
    hysteresis: float = 0.05
    """Smallest gain in the score for which a child changes its parent, or leaves the root for one."""
    every: int | None = None
    """Number of steps between updates of the parents. None: 3% of the run."""
    until: float = 0.6
    """Fraction of the run after which living children keep their parents."""
    dead: Literal["root", "capacity", "stay"] = "root"
    """What happens to dead children, about which there is no evidence, at an update. root: they hang from the root
    until they live; capacity: they go to the parents that have collected the most loss (Eq. 10); stay: nothing."""
    dead_until: float = 0.8
    """Fraction of the run after which dead children stay where they are."""
    promote: float = 0.0
    """At an update, features of later layers change places with those of a layer if the sum of their squared
    activations since the last update is more than this many times as large. 0: every feature stays in its layer."""
    detectors: Literal["token", "batch"] = "token"
    """Which detectors are on. token: the largest pre-activations of every token; batch: as many, the largest of all
    these tokens, as a budget of the batch selects."""
    sample: int = 512
    """Number of tokens of a batch on which all detectors are computed."""
    window: int | None = None
    """Number of such tokens, the latest, from which parents are chosen. None: 128 times the number of features over the
    sum of all k, so that every child's detector is on equally often on average, whatever the size and k of the SAE: at
    L0 32 four tokens for each feature."""
    min_count: int = 10
    """A child whose own detector is on at fewer of these tokens keeps its parent. log_lift ranks only candidates that
    are active with the child on at least this many."""

    def __post_init__(self) -> None:
        if not 0 <= self.earned <= 1:
            raise InputError(f"sae.allocation.from_data.earned = {self.earned}: expected 0 to 1")
        for name in ("until", "dead_until"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(
                    f"sae.allocation.from_data.{name} = {value}: expected a fraction from 0 to 1"
                )
        if self.promote and not self.promote >= 1:
            raise InputError(
                f"sae.allocation.from_data.promote = {self.promote}: expected 0, or 1 or more (times as often)"
            )
        least = {"shuffles": 0, "hysteresis": 0, "every": 1, "sample": 1, "window": 1, "min_count": 1}
        for name, bound in least.items():
            if (value := getattr(self, name)) is not None and value < bound:
                raise InputError(f"sae.allocation.from_data.{name} = {value}: expected {bound} or more")

    def updates(self, run: RunLength) -> range:
        """The steps after which parents are updated."""
        period = run.share(_EVERY) if self.every is None else self.every
        until = self.until if self.dead == "stay" else max(self.until, self.dead_until)
        return range(period, int(until * run.n_steps) + 1, period)


class Seen(NamedTuple):
    """The features of some tokens of a batch; a value of 0 is an empty slot."""

    own: SparseCode
    """Those whose own detector is on, without the gate."""
    active: SparseCode
    """Those that are active."""


class Judged(NamedTuple):
    """What the data say about the parents of some children."""

    parent: Int[Tensor, "c"]
    """The parents from now on, -1 for the root."""
    known: Bool[Tensor, "c"]
    """Whether the child's own detector is on often enough to judge. If not, the child keeps its parent."""
    excess: Float[Tensor, "c"]
    """How much more often the parent is active where the child's own detector is on. 0 for the root."""
    null: Float[Tensor, "c"]
    """The same of another feature of the parent's layer, one that is active about as often. 0 for the root."""

    def describe(self) -> dict[str, float | None]:
        """For the log: the fraction of children that were judged, and means over the edges among them."""
        edge = self.known & (self.parent != ROOT)
        n = int(edge.sum())
        means = {"excess": self.excess, "excess_null": self.null}
        return {
            "judged": float(self.known.double().mean()),
            **{name: float(each[edge].mean()) if n else None for name, each in means.items()},
        }


class Evidence(nn.Module):
    """The last tokens of the window: the features whose own detector is on, and those that are active.

    Counts of pairs are taken from them when parents are updated. Kept as counts they would need d_sae^2 numbers, and
    each step would have to let all of them fade; the tokens take a few MiB at any size of the SAE.
    """

    own_ids: Tensor
    active_ids: Tensor
    rows: Tensor

    def __init__(
        self, config: FromDataConfig, d_sae: int, k: int, device: torch.device, *, batch: int | None = None
    ) -> None:
        """batch: the number of tokens of a step, if it may be below `config.sample`. k: the sum of all k.

        Twice as many features as `k` are kept for a token, of each of the two kinds, and no fewer than `k + 16`.
        """
        super().__init__()
        self._d_sae = d_sae
        window = max(_WINDOW * d_sae // k, 1) if config.window is None else config.window
        self.sample = min(config.sample, window, config.sample if batch is None else batch)
        self.n_steps = window // self.sample
        """The number of steps in the window."""
        shape, of = (
            (self.n_steps, self.sample, max(2 * k, k + _SPARE)),
            {"dtype": torch.int32, "device": device},
        )
        # An id of d_sae is an empty slot.
        self.register_buffer("own_ids", torch.full(shape, d_sae, **of))
        self.register_buffer("active_ids", torch.full(shape, d_sae, **of))
        self.register_buffer("rows", torch.zeros(self.n_steps, device=device))

    def add(self, seen: Seen, number: int) -> None:
        """Put the tokens of step `number` in the place of the oldest ones."""
        place = (number - 1) % self.n_steps
        for ids, code in ((self.own_ids, seen.own), (self.active_ids, seen.active)):
            ids[place] = self._d_sae
            ids[place, : len(code), : code.values.shape[1]] = self._kept(code)
        self.rows[place] = len(seen.own)

    def rearrange(self, at: Int[Tensor, "d_sae"]) -> None:
        """Follow features that change places: the one at place `i` is from now on the one that was at `at[i]`."""
        to = torch.cat([at.argsort(), at.new_tensor([self._d_sae])])
        for ids in (self.own_ids, self.active_ids):
            ids.copy_(to[ids.long()])

    def _kept(self, code: SparseCode) -> Int32[Tensor, "m slots"]:
        """The ids of a code; of a code with too many slots, those of the largest values."""
        slots = self.own_ids.shape[2]
        values, ids = code.values, code.ids
        if values.shape[1] > slots:
            values, kept = values.topk(slots, dim=1)
            ids = ids.gather(1, kept)
        return torch.where(values > 0, ids, self._d_sae).int()

    def pairs(self, children: range, candidates: range, shift: float = 0.0) -> Iterator[_Counts]:
        """How often candidates are active where children's own detectors are on, for parts of the children.

        shift: the fraction of the tokens by which activations are shifted against detectors.
        """
        own, width = self.own_ids.flatten(0, 1), len(candidates)
        token, slot = ((own >= children.start) & (own < children.stop)).nonzero(as_tuple=True)
        child, order = own[token, slot].sort(stable=True)
        token = token[order]
        # The active candidates of each token first, and no more slots than the fullest token needs.
        active = self.active_ids.flatten(0, 1) - candidates.start
        if shift:
            sample = torch.arange(self.sample, device=active.device)
            filled = (sample < self.rows[:, None]).flatten().nonzero().flatten()
            active[filled] = active[filled.roll(int(shift * len(filled)))]
        active = torch.where((active >= 0) & (active < width), active, width).sort(1).values
        active = active[:, : max(int((active < width).sum(1).max()), 1)]
        n = self.rows.sum()
        often = torch.bincount(active.flatten(), minlength=width + 1)[:width].to(n.dtype)
        on = torch.bincount(child - children.start, minlength=len(children))
        entries = on.cumsum(0).tolist()
        most_children = max(_PART_ENTRIES // (width + 1), 1)
        most_entries = max(_PART_ENTRIES // active.shape[1], 1)
        start = first = 0
        while start < len(children):
            stop = max(bisect_right(entries, first + most_entries), start + 1)
            stop = min(stop, start + most_children)
            end = entries[stop - 1]
            part = range(children.start + start, children.start + stop)
            # The last column takes the empty slots.
            keys = (child[first:end, None] - part.start) * (width + 1) + active[token[first:end]]
            shared = torch.bincount(keys.flatten(), minlength=len(part) * (width + 1))
            shared = shared.view(len(part), width + 1)[:, :width].to(n.dtype)
            yield _Counts(part, on[start:stop], shared, often / n.clamp(min=1))
            start, first = stop, end


class _Counts(NamedTuple):
    children: range
    on: Int[Tensor, "c"]
    """On how many tokens each child's own detector is on."""
    shared: Float[Tensor, "c m"]
    """On how many of these each candidate is active."""
    rate: Float[Tensor, "m"]
    """The fraction of all tokens on which each candidate is active."""

    def excess(self) -> Float[Tensor, "c m"]:
        return self.shared / self.on.clamp(min=1)[:, None] - self.rate


def judge(
    config: FromDataConfig,
    evidence: Evidence,
    parent: Int[Tensor, "d_sae"],
    children: range,
    candidates: range,
    layers: Int[Tensor, "m"],
) -> Judged:
    """The parents of `children` among `candidates` that the evidence supports.

    layers: the layer of every candidate.
    """
    parts, n_null = [], config.shuffles
    shifted = [evidence.pairs(children, candidates, i / (n_null + 1)) for i in range(1, n_null + 1)]
    for counts, *nulls in zip(evidence.pairs(children, candidates), *shifted, strict=True):
        old = parent[counts.children.start : counts.children.stop]
        local = torch.where(old >= candidates.start, old - candidates.start, ROOT)
        chance = torch.zeros_like(counts.on, dtype=counts.rate.dtype)
        for null in nulls:
            chance = torch.maximum(chance, null.excess().max(1).values)
        judged = choose(config, counts.on, counts.shared, counts.rate, local, layers, chance)
        new = torch.where(judged.parent == ROOT, ROOT, judged.parent + candidates.start)
        parts.append(judged._replace(parent=torch.where(judged.known, new, old)))
    return Judged(*(torch.cat(column) for column in zip(*parts, strict=True)))


def choose(
    config: FromDataConfig,
    on: Int[Tensor, "c"],
    shared: Float[Tensor, "c m"],
    rate: Float[Tensor, "m"],
    parent: Int[Tensor, "c"],
    layers: Int[Tensor, "m"],
    chance: Float[Tensor, "c"] | None = None,
) -> Judged:
    """The best of `m` candidates for each child, or its present parent, or the root (-1).

    on: number of tokens on which the child's own detector is on; shared: on how many of them a candidate is active;
    rate: the fraction of all tokens on which a candidate is active; parent: the present one, as a candidate, or -1.
    chance: the largest excess that each child has by chance, which an edge must exceed by `earned`. None: 0.
    """
    earned = torch.full_like(on, config.earned, dtype=rate.dtype)
    earned = earned if chance is None else earned + chance
    coverage = shared / on.clamp(min=1)[:, None]
    excess = coverage - rate
    if config.score == "excess":
        score, least = excess, earned
    else:
        worthy = (shared >= config.min_count) & (excess > earned[:, None])
        score, least = (
            torch.where(worthy, (coverage / rate.clamp(min=1e-12)).log2(), -torch.inf),
            torch.zeros_like(earned),
        )
    best_score, best = score.max(1)
    own = parent.clamp(min=0)[:, None]
    stays = (parent != ROOT) & (excess.gather(1, own)[:, 0] > earned)
    reference = torch.where(stays, score.gather(1, own)[:, 0], least)
    new = torch.where(best_score > reference + config.hysteresis, best, torch.where(stays, parent, ROOT))
    known = on >= config.min_count
    new = torch.where(known, new, parent)
    has, place = new != ROOT, new.clamp(min=0)[:, None]
    null = as_often(rate, layers)[place]
    return Judged(
        new,
        known,
        torch.where(has, excess.gather(1, place)[:, 0], 0),
        torch.where(has, excess.gather(1, null)[:, 0], 0),
    )


def as_often(rate: Float[Tensor, "m"], layers: Int[Tensor, "m"]) -> Int[Tensor, "m"]:
    """For each candidate another one of its layer that is active about as often: the next in the order of rates.

    The last of a layer has the one before it. A layer of one candidate has none, and the candidate itself stands in.
    """
    order = rate.argsort(stable=True)
    order = order[layers[order].argsort(stable=True)]
    layer = layers[order]
    same_as_next = F.pad(layer[1:] == layer[:-1], (0, 1))
    same_as_last = F.pad(layer[1:] == layer[:-1], (1, 0))
    place = torch.arange(len(order), device=order.device)
    place = torch.where(same_as_next, place + 1, torch.where(same_as_last, place - 1, place))
    other = torch.empty_like(order)
    other[order] = order[place]
    return other
