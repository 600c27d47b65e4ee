"""Exact statistics of all pairs of features that fire together, and scores of parents and children from them.

A feature fires on a token if its value a is above the threshold; lower values count as 0. With sums over the tokens on
which the child c fires, their number `n_c`, and `M_i` the largest value of feature i on any token,

    n_pc = #{t: both fire}    D_pc = sum a_p a_c    Q_pc = sum a_p^2    S_pc = sum a_p    q_c, s_c: the same of a_c

                              score of parent p and child c                           source
    coverage                  n_pc / n_c                                              Tree SAE, Eq. 4
    mcs_binary                sqrt(n_pc / n_c)                                        Tree SAE, App. I
    mcs_binary_scaled         sqrt(n_pc / n_c) min(1, M_p) / M_p                      Tree SAE, App. I
    mcs_correlation           D_pc / sqrt(q_c Q_pc)                                   Bricken et al. 2023
    mcs_correlation_scaled    D_pc / sqrt(q_c Q_pc) min(M_c, M_p) / M_p               Matryoshka SAE, App. F
    pearson                   (D - S s/n) / sqrt((Q - S^2/n) (q - s^2/n)), n = n_c    "correlation" taken literally

A score that would be 0/0 is 0 (docs/spec/hierarchy.md#mcs). No d_sae x d_sae matrix is stored: the firings are kept
(8 bytes each, and another 8 to find those of a feature; in files, if there are many), and the pairs of a feature are
counted when needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32
from torch import Tensor

from ..errors import InputError, require
from ..memory import give_back
from ..sparse_code import SparseCode
from ..spill import WAITING, Spill, let_go

Score = Literal[
    "coverage", "mcs_binary", "mcs_binary_scaled", "mcs_correlation", "mcs_correlation_scaled", "pearson"
]
SCORES: tuple[Score, ...] = get_args(Score)

_BINARY: tuple[Score, ...] = ("coverage", "mcs_binary", "mcs_binary_scaled")
# Slots whose sums are added up together, and slots looked at together while the pairs of a feature are counted.
_SLOTS = 1 << 21
# Slots that are sorted together, and slots of which copies in float64 are made. No result depends on these.
_SORTED, _COPIED = 1 << 19, 1 << 18
# Dense rows of scores come in blocks of so many entries.
_BLOCK_ENTRIES = 1 << 21
# Bytes of a firing that `PairStatistics` takes in, before it sorts them.
_KEPT = 8
_MIN_MAX = 1e-12
# A variance below this share of its mean square is rounding: the values are all the same.
_MIN_VARIANCE = 1e-10


class Marginals(NamedTuple):
    """Sums for single features, over all tokens: firings, and sum, sum of squares and maximum of their values."""

    n: Int[Tensor, "*f"]
    sum: Float64[Tensor, "*f"]
    square: Float64[Tensor, "*f"]
    max: Float32[Tensor, "*f"]


class PairSums(NamedTuple):
    """Sums for pairs, over the tokens on which both fire: their number, sum a_p a_c, sum a_p and sum a_p^2."""

    n: Int[Tensor, "*pairs"]
    dot: Float64[Tensor, "*pairs"]
    parent_sum: Float64[Tensor, "*pairs"]
    parent_square: Float64[Tensor, "*pairs"]


def pair_score(kind: Score, pair: PairSums, parent: Marginals, child: Marginals) -> Float64[Tensor, "*pairs"]:
    """The scores of pairs, defined at the top of this file; `parent` and `child` broadcast against `pair`."""
    n_c = child.n.clamp(min=1)
    scale = parent.max.double().clamp(min=_MIN_MAX)
    match kind:
        case "coverage":
            return pair.n / n_c.double()
        case "mcs_binary":
            return (pair.n / n_c.double()).sqrt()
        case "mcs_binary_scaled":
            return (pair.n / n_c.double()).sqrt() * (scale.clamp(max=1) / scale)
        case "mcs_correlation":
            return _cosine(pair, child)
        case "mcs_correlation_scaled":
            return _cosine(pair, child) * (torch.minimum(child.max.double(), scale) / scale)
        case "pearson":
            return _pearson(pair, child)


def _cosine(pair: PairSums, child: Marginals) -> Float64[Tensor, "*pairs"]:
    # Take the roots separately, because the product of two small sums of squares would underflow.
    length = child.square.sqrt() * pair.parent_square.sqrt()
    return torch.where(length > 0, pair.dot / length, 0).clamp(max=1)


def _pearson(pair: PairSums, child: Marginals) -> Float64[Tensor, "*pairs"]:
    n = child.n.clamp(min=1)
    covariance = pair.dot - pair.parent_sum * child.sum / n
    of_parent = pair.parent_square - pair.parent_sum**2 / n
    of_child = child.square - child.sum**2 / n
    varies = (of_parent > _MIN_VARIANCE * pair.parent_square) & (of_child > _MIN_VARIANCE * child.square)
    length = of_parent.clamp(min=0).sqrt() * of_child.clamp(min=0).sqrt()
    return torch.where(varies, covariance / length, 0).clamp(-1, 1)


class TopPairs(NamedTuple):
    """The best partners of some features, best first; unused places have id -1 and score 0."""

    ids: Int[Tensor, "b top"]
    score: Float64[Tensor, "b top"]


class PairStatistics:
    """Collects codes, and computes the scores of all pairs, on the CPU whatever the device of the codes.

    A feature is active above `threshold` (`activation_threshold` in the configuration of an SAE). The active ids of a
    token must be distinct, as in any code of an SAE. The results are bit-identical however tokens are split into codes.

    16 bytes are kept for each firing (0.5 GB for a million tokens with 32 active features each): in memory while they
    are few, otherwise in files without names (`Spill`). `firings` and `together` read from these what they need;
    whatever counts all pairs of a feature maps the files. Beyond that, blocks of fixed size and 4 bytes a token are
    held in memory.
    """

    def __init__(self, d_sae: int, threshold: float = 1e-3, folder: Path | None = None) -> None:
        """folder: on whose disk the files are; None for that of temporary files."""
        if not 0 <= threshold < float("inf"):
            raise InputError(f"activation threshold {threshold}: expected 0 or more")
        self.d_sae, self.threshold = d_sae, threshold
        self._folder = folder
        self._ids = Spill(torch.int32, folder=folder)
        self._values = Spill(torch.float32, folder=folder)
        self._widths: list[Int32[Tensor, "n"]] = []
        self._firings: _Firings | None = None
        self.n_tokens = 0

    def add(self, code: SparseCode) -> None:
        """Add the code of more tokens."""
        code = code.reshape(-1)
        active = code.active(self.threshold)
        self._ids.add(code.ids[active])
        self._values.add(code.values[active])
        self._widths.append(active.sum(1).to("cpu", torch.int32))
        self.n_tokens += len(active)
        self._firings = None

    def part(self, begin: int, end: int) -> PairStatistics:
        """The statistics of the tokens from number `begin` to before `end` alone, in the order of adding."""
        whole = self._sorted
        first, last = int(whole.width[:begin].sum()), int(whole.width[:end].sum())
        part = PairStatistics(self.d_sae, self.threshold, self._folder)
        part._ids.add(self._ids.read(first, last))
        part._values.add(self._values.read(first, last))
        part._widths = [whole.width[begin:end]]
        part.n_tokens = len(part._widths[0])
        return part

    @property
    def n_firings(self) -> int:
        """The number of firings so far, over all features and tokens."""
        return len(self._ids)

    def still_to_come(self, n_firings: int) -> int:
        """The memory, in bytes, that adding so many more firings will take."""
        return kept_memory(self.n_firings + n_firings) - kept_memory(self.n_firings)

    @property
    def marginals(self) -> Marginals:
        """The sums of single features, over all tokens."""
        return self._sorted.marginals

    def firings(self, feature: int) -> tuple[Int32[Tensor, "n_c"], Float32[Tensor, "n_c"]]:
        """The tokens on which a feature fires, ascending and numbered in the order of adding; and its values there."""
        return self._sorted.tokens_of(feature), self._sorted.values_of(feature)

    def scores(
        self, kind: Score, features: Int[Tensor, "f"], role: Literal["child", "parent"] = "child"
    ) -> Iterator[tuple[Int[Tensor, "b"], Float64[Tensor, "b d_sae"]]]:
        """Yield blocks of `features`, in order, with their scores as `role` against every feature in the other role.

        Pairs that never fire together score 0. The scores of a feature with itself have no meaning.
        """
        for block, found in self.scores_of((kind,), features, role):
            yield block, found[kind]

    def scores_of(
        self,
        kinds: Sequence[Score],
        features: Int[Tensor, "f"],
        role: Literal["child", "parent"] = "child",
    ) -> Iterator[tuple[Int[Tensor, "b"], dict[Score, Float64[Tensor, "b d_sae"]]]]:
        """The same as `scores` for several kinds of scores, counting the pairs once."""
        for block in features.split(max(_BLOCK_ENTRIES // max(self.d_sae, 1), 1)):
            pair = self._sorted.pairs(block, role, values=not set(kinds).issubset(_BINARY))
            own = Marginals(*(m[block, None] for m in self.marginals))
            parent, child = (self.marginals, own) if role == "child" else (own, self.marginals)
            found: dict[Score, Float64[Tensor, "b d_sae"]] = {}
            for kind in kinds:
                score = pair_score(kind, pair, parent, child)
                require(bool(torch.isfinite(score).all()), kind, "finite scores")
                found[kind] = torch.where(pair.n > 0, score, 0)
            yield block, found

    def counts_of(
        self, features: Int[Tensor, "f"]
    ) -> Iterator[tuple[Int[Tensor, "b"], Int[Tensor, "b d_sae"]]]:
        """Yield blocks of `features`, in order, with the numbers of tokens on which each fires with every feature."""
        for block in features.split(max(_BLOCK_ENTRIES // max(self.d_sae, 1), 1)):
            yield block, self._sorted.pairs(block, "child", values=False).n

    def together(self, one: Int[Tensor, "e"], other: Int[Tensor, "e"]) -> Int[Tensor, "e"]:
        """Number of tokens on which the two features of each pair fire together."""
        both = torch.zeros(len(one), dtype=torch.int64)
        for e, (a, b) in enumerate(zip(one.tolist(), other.tolist(), strict=True)):
            first, second = self._sorted.tokens_of(a), self._sorted.tokens_of(b)
            if len(first):
                place = torch.searchsorted(first, second).clamp(max=len(first) - 1)
                both[e] = (first[place] == second).sum()
        return both

    def sums_of(
        self, features: Int[Tensor, "f"], role: Literal["child", "parent"] = "child"
    ) -> Iterator[tuple[Int[Tensor, "b"], PairSums]]:
        """The same as `scores`, with the sums from which they are computed instead."""
        for block in features.split(max(_BLOCK_ENTRIES // max(self.d_sae, 1), 1)):
            yield block, self._sorted.pairs(block, role, values=True)

    def top_parents(self, kind: Score, children: Int[Tensor, "b"], top: int) -> TopPairs:
        """The best parents of each child, among all features that fire with it.

        Scores that are equal in float32 are ties. They go to the less frequent feature (if all have coverage 1, this is
        the nearest ancestor), then to the lower index.
        """
        return self._top(kind, children, top, "child", self.rarest_first, min_count=1)

    def top_children(
        self, kind: Score, parents: Int[Tensor, "b"], top: int, min_count: int = 100
    ) -> TopPairs:
        """The best children of each parent, among the features that fire with it and at least `min_count` times.

        Without `min_count`, a child that fired once would score 1 under any parent that fired with it; the Tree SAE
        paper uses 100. Scores that are equal in float32 are ties, and go to the more frequent child, then to the lower
        index.
        """
        preference = self.marginals.n.sort(descending=True, stable=True).indices
        return self._top(kind, parents, top, "parent", preference, min_count)

    @property
    def rarest_first(self) -> Int[Tensor, "d_sae"]:
        """All features, the least frequent first, then by index."""
        return self.marginals.n.sort(stable=True).indices

    def _top(
        self,
        kind: Score,
        features: Int[Tensor, "b"],
        top: int,
        role: Literal["child", "parent"],
        preference: Int[Tensor, "d_sae"],
        min_count: int,
    ) -> TopPairs:
        ids = torch.full((len(features), top), -1)
        best = torch.zeros(len(features), top, dtype=torch.float64)
        first = 0
        for block, score in self.scores(kind, features, role):
            allowed = (score != 0) & (self.marginals.n >= min_count)
            allowed &= block[:, None] != torch.arange(self.d_sae)
            for place in range(top):
                found = first_best(score, allowed, preference)
                rows = (found >= 0).nonzero().flatten()
                ids[first + rows, place] = found[rows]
                best[first + rows, place] = score[rows, found[rows]]
                allowed[rows, found[rows]] = False
            first += len(block)
        return TopPairs(ids, best)

    @property
    def _sorted(self) -> _Firings:
        if self._firings is None:
            # Replace the parts by the joined tensor, to avoid holding both.
            self._widths = [torch.cat([torch.zeros(0, dtype=torch.int32), *self._widths])]
            self._firings = _Firings(self.d_sae, self._ids, self._values, self._widths[0], self._folder)
        return self._firings


def first_best(
    score: Float[Tensor, "b d_sae"], allowed: Bool[Tensor, "b d_sae"], preference: Int[Tensor, "d_sae"]
) -> Int[Tensor, "b"]:
    """The allowed column with the largest score in each row, -1 if no column is allowed.

    Scores that are equal in float32 are ties, and go to the first in `preference`, a permutation of all columns.
    """
    ranked = torch.where(allowed, score.float(), -torch.inf)[:, preference]
    best, place = ranked.max(1)  # the first of equals
    return torch.where(best > -torch.inf, preference[place], -1)


class _Firings:
    """All firings, by token (`ids`, `values`; `start` of each token) and again by feature (`token`, `own`).

    token, own: the tokens on which each feature fires, feature by feature and ascending, and its values there; those of
    feature i begin at `begin[i]`.
    """

    def __init__(
        self, d_sae: int, ids: Spill, values: Spill, width: Int32[Tensor, "n"], folder: Path | None
    ) -> None:
        self.d_sae, self.ids, self.values, self.width = d_sae, ids, values, width
        n = torch.zeros(d_sae, dtype=torch.int64)
        total, square = torch.zeros(2, d_sae, dtype=torch.float64)
        largest = torch.zeros(d_sae)
        for first in range(0, len(ids), _SLOTS):
            # These are added up by themselves, so that the order of additions, and with it rounding, stays the same.
            part_total, part_square = torch.zeros(2, d_sae, dtype=torch.float64)
            for begin, end in _bounds(first, min(first + _SLOTS, len(ids)), _COPIED):
                feature, value = ids.read(begin, end).long(), values.read(begin, end)
                largest.scatter_reduce_(0, feature, value, "amax")
                value = value.double()
                n += torch.bincount(feature, minlength=d_sae)
                part_total.index_add_(0, feature, value)
                part_square.index_add_(0, feature, value**2)
            total += part_total
            square += part_square
        self.marginals = Marginals(n, total, square, largest)
        self.begin = n.cumsum(0) - n
        self.token, self.own = Spill(torch.int32, folder=folder), Spill(torch.float32, folder=folder)
        self.token.reserve(len(ids))
        self.own.reserve(len(ids))
        self._sort()

    @cached_property
    def start(self) -> Int[Tensor, "n"]:
        """The first slot of each token."""
        return self.width.cumsum(0) - self.width

    def _sort(self) -> None:
        """A counting sort in parts: sorting everything at once would take several times the memory."""
        start = self.width.cumsum(0).sub_(self.width)
        free = self.begin.clone()
        for first, last in _bounds(0, len(self.ids), _SORTED):
            feature, order = self.ids.read(first, last).sort(stable=True)
            count = torch.bincount(feature, minlength=self.d_sae)
            place = (free + count - count.cumsum(0))[feature].add_(torch.arange(len(feature)))
            token = torch.searchsorted(start, first + order, right=True).sub_(1)
            self.token.put(place, token.int())
            self.own.put(place, self.values.read(first, last)[order])
            free += count
        give_back()

    def tokens_of(self, feature: int) -> Int32[Tensor, "n_c"]:
        """The tokens on which a feature fires."""
        return self.token.read(*self._mine(feature))

    def values_of(self, feature: int) -> Float32[Tensor, "n_c"]:
        """The values of a feature on these tokens."""
        return self.own.read(*self._mine(feature))

    def _mine(self, feature: int) -> tuple[int, int]:
        begin = int(self.begin[feature])
        return begin, begin + int(self.marginals.n[feature])

    def pairs(
        self, features: Int[Tensor, "b"], role: Literal["child", "parent"], *, values: bool
    ) -> PairSums:
        """The sums of each of `features`, as `role`, with every feature: `[b, d_sae]`. Without `values`, only n."""
        shape = (len(features), self.d_sae)
        n = torch.zeros(shape, dtype=torch.int64)
        dot, parent_sum, parent_square = torch.zeros(3, *(shape if values else (1, 1)), dtype=torch.float64)
        step = max(_SLOTS // max(int(self.width.max()) if len(self.width) else 1, 1), 1)
        ids, all_values = self.ids.tensor, self.values.tensor
        for i, feature in enumerate(features.tolist()):
            tokens, owns = self.tokens_of(feature), self.values_of(feature)
            for token, own in zip(tokens.split(step), owns.split(step), strict=True):
                width = self.width[token].long()
                # The slots of all these tokens, one token after the other.
                skip = self.start[token] - (width.cumsum(0) - width)
                slots = skip.repeat_interleave(width) + torch.arange(int(width.sum()))
                other = ids[slots]
                n[i] += torch.bincount(other, minlength=self.d_sae)
                if values:
                    mine_there = own.double().repeat_interleave(width)
                    other_there = all_values[slots].double()
                    of_parent = other_there if role == "child" else mine_there
                    dot[i] += torch.bincount(other, mine_there * other_there, minlength=self.d_sae)
                    parent_sum[i] += torch.bincount(other, of_parent, minlength=self.d_sae)
                    parent_square[i] += torch.bincount(other, of_parent**2, minlength=self.d_sae)
        let_go(ids)
        let_go(all_values)
        return PairSums(n, dot, parent_sum, parent_square)


def _bounds(first: int, last: int, step: int) -> Iterator[tuple[int, int]]:
    """The beginning and end of each part of a range."""
    for begin in range(first, last, step):
        yield begin, min(begin + step, last)


def kept_memory(n_firings: int) -> int:
    """The memory, in bytes, in which so many firings are kept; the rest of them is in files."""
    return min(_KEPT * n_firings, 2 * WAITING)


def sorted_memory(n_firings: int, d_sae: int) -> int:
    """The memory, in bytes, that sorting firings by feature takes in addition to the firings themselves."""
    return kept_memory(n_firings) + 64 * min(n_firings, _SORTED) + 64 * d_sae


def scores_memory(d_sae: int, kinds: Sequence[Score]) -> int:
    """The peak memory, in bytes, of computing a block of scores while the previous block is still in use."""
    # Each sum of a pair takes 8 bytes; each score is held twice, and about four temporaries are needed.
    sums = 1 if set(kinds).issubset(_BINARY) else 4
    return 8 * (sums + 5 + 4 * len(kinds)) * max(min(_BLOCK_ENTRIES, d_sae**2), d_sae)
