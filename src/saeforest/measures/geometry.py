"""Where children lie: in the activations beneath their parent, and in the decoder.

**Beneath a parent** (Tree SAE, section 6.1, figure 9). Its points are the activations on which any of its children
fires, in the units the SAE works in, each labeled with the child that fires most strongly on it. They are projected
onto their first two principal components, and with them each child's encoder direction e_c. With the origin at the
mean of the points and m_c the mean of those labeled c, all within that plane,

    toward       mean over children of cos(e_c, m_c)
    agreement    share of children whose e_c is nearer (by cosine) to their own m_c than to any sibling's
    explained_2  share of the points' variance in the plane, mean over families

The paper shows three families and says of two that encoder directions point toward their clusters. Directions that
point anywhere would agree once in as many times as the family has children: `detail["chance"]`. That is no null for an
SAE, for the labels come from the encoder whose direction is tested: an untrained tree agrees far more often. Unlike the
authors' code, which takes all descendants, raw activations and the first child by rank, this takes direct children,
the SAE's units and the strongest. Families that are not named are chosen for overlapping least, as the paper blames
overlap where directions miss: these numbers describe favourable families, not all.

**In the decoder** (as in the HSAE paper's picture of siblings). A family is the children of one parent in one layer.
Over its ordered pairs (a, b), a != b, with unit decoder rows d,

    sibling_cosine    mean of d_a . d_b
    unrelated_cosine  mean of d_a . d_b', b' being every feature of that layer outside the family

each the mean over families, so that big families count no more than small ones. Some families are shown in a plane
by UMAP, where umap-learn is installed; nothing is measured there.

Only features that fired `min_count` times or more take part in any of this.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int
from scipy.linalg import eigh
from torch import Tensor

from ..errors import InputError
from ..progress import progress
from ..structure.forest import ROOT, Forest
from .bootstrap import Estimate, FloatArray, estimate, interval_method
from .record import Record, undefined
from .spec import Study
from .subject import Subject

# Children of a family that is chosen by itself; of a family with more that is named, the most frequent are taken.
_LEAST_CHILDREN, _MOST_CHILDREN = 3, 8
_STORED_POINTS = 600
# Below this share of the mean square, variance is rounding.
_NO_VARIANCE = 1e-12
# Of the UMAP: features of one family, fewer of which make no cluster, and more of which would hide the others.
_UMAP_LEAST, _UMAP_MOST, _UMAP_NEIGHBOURS = 3, 20, 15


@dataclass(frozen=True)
class GeometryConfig:
    """Which families are examined, and on how many activations."""

    parents: tuple[int, ...] = ()
    """Parent features whose families to examine. By default, `families` families of 3 to 8 children whose activations
    overlap least."""
    families: int = 3
    """Number of families to choose if `parents` is empty."""
    min_count: int = 100
    """Minimum number of activations that a feature must fire on to be included."""
    max_points: int = 300
    """Maximum number of activations to use for each child."""
    umap_families: int = 6
    """Number of sibling families in the UMAP figure; 0 for no figure."""
    seed: int = 0
    """Random seed for sampling activations, and for the UMAP figure."""

    def __post_init__(self) -> None:
        least = {"families": 1, "min_count": 1, "max_points": 2, "umap_families": 0, "seed": 0}
        for key, number in least.items():
            if (given := getattr(self, key)) < number:
                raise InputError(f"geometry.{key} = {given}: expected {number} or more")
        if len(set(self.parents)) < len(self.parents):
            raise InputError(f"geometry.parents = {list(self.parents)}: expected different features")


class UmapFamily(NamedTuple):
    """A parent, its children that take part, and the share of their activations on which two or more of them fire."""

    parent: int
    children: list[int]
    overlap: float
    n: int
    """Activations on which any of the children fires."""


def geometry(subject: Subject, config: GeometryConfig) -> Record:
    """Of the SAE and the forest in `subject`. Raises InputError where `config.parents` names no feature."""
    forest, n_fired = subject.forest, subject.pairs.marginals.n
    for parent in config.parents:
        if not 0 <= parent < forest.d_sae:
            raise InputError(f"geometry.parents: {parent}: expected features, 0 to {forest.d_sae - 1}")
    usable = n_fired >= config.min_count
    parents = config.parents or tuple(f.parent for f in choose_families(subject, usable, config.families))
    entries = []
    with progress("geometry", len(parents), "families") as advance:
        for parent in parents:
            entries.append(_beneath(subject, usable, parent, config))
            advance(1)

    siblings = Siblings(subject.sae.W_dec.detach().double().cpu(), forest, usable)
    beneath, chance = _agreement(entries)
    decoder = siblings.cosines()
    value = beneath.value | decoder.value
    tokens = len(subject.rows)
    return Record(
        "geometry",
        value,
        beneath.interval | decoder.interval,
        unit="fraction",
        tokens=tokens,
        settings={
            **subject.settings,
            "config": asdict(config),
            "interval_method": interval_method("families"),
        },
        detail={
            "null": undefined(value, _reasons(forest, entries, config), tokens),
            "units": dict.fromkeys(("toward", "sibling_cosine", "unrelated_cosine"), "cosine"),
            "chosen": "named"
            if config.parents
            else f"{_LEAST_CHILDREN} to {_MOST_CHILDREN} children, least overlap first",
            "chance": chance,
            "families": entries,
            "sibling_families": len(siblings.parent),
            "umap": siblings.picture(config.umap_families, config.seed),
        },
    )


def choose_families(subject: Subject, usable: Bool[Tensor, "d_sae"], n: int) -> list[UmapFamily]:
    """The `n` families with 3 to 8 usable children that overlap least.

    Of equals, the one with the most activations, then the one with the lowest parent.
    """
    above = subject.forest.parent[usable]
    parents, n_children = above[above != ROOT].unique(return_counts=True)
    fitting = parents[(n_children >= _LEAST_CHILDREN) & (n_children <= _MOST_CHILDREN)]
    found = [_family(subject, usable, int(parent)) for parent in fitting]
    return sorted(found, key=lambda family: (family.overlap, -family.n, family.parent))[:n]


def _family(subject: Subject, usable: Bool[Tensor, "d_sae"], parent: int) -> UmapFamily:
    n_fired = subject.pairs.marginals.n
    children = [c for c in subject.forest.children(parent) if usable[c]]
    children = sorted(sorted(children, key=lambda c: -int(n_fired[c]))[:_MOST_CHILDREN])
    if not children:
        return UmapFamily(parent, [], 0.0, 0)
    times = torch.cat([subject.pairs.firings(c)[0] for c in children]).unique(return_counts=True)[1]
    return UmapFamily(parent, children, float((times > 1).double().mean()), len(times))


def _beneath(
    subject: Subject, usable: Bool[Tensor, "d_sae"], parent: int, config: GeometryConfig
) -> dict[str, Any]:
    """What is seen of one family, or why nothing is."""
    family = _family(subject, usable, parent)
    n_children = len(subject.forest.children(parent))
    if n_children == 0:
        return {"parent": parent, "why": "has no children"}
    if len(family.children) < 2:
        return {
            "parent": parent,
            "why": f"{len(family.children)} of its {n_children} children fired "
            f"{config.min_count} times or more; at least 2 are needed",
        }
    rows, label = _points(subject, family, config)
    u = subject.sae.normalize(subject.x[rows].to(subject.sae.device))[0].double().cpu()
    encoder = F.normalize(subject.sae.encoder.detach()[family.children].double().cpu())
    plane = principal_plane(u)
    if plane is None:
        return {"parent": parent, "why": "its activations have no variance in two dimensions"}
    points = (u - u.mean(0)) @ plane.axes.T
    arrows = encoder @ plane.axes.T
    own = F.one_hot(label, len(family.children)).double()
    n = own.sum(0)
    if int((n > 0).sum()) < 2:
        return {"parent": parent, "why": "one child fires most strongly wherever any of them does"}
    # A child that is nowhere the strongest has no centroid.
    centroid = own.T @ points / n[:, None]
    cosine = F.normalize(arrows) @ F.normalize(centroid).T
    shown = _sample(torch.arange(len(points)), _STORED_POINTS, config.seed, parent)
    return {
        "parent": parent,
        "n_children": n_children,
        "overlap": family.overlap,
        "n": len(points),
        "explained": plane.explained.tolist(),
        "children": [
            {
                "child": child,
                "n": int(n[i]),
                "cosine": float(cosine[i, i]) if n[i] else None,
                "agrees": _is_nearest(cosine[i], i) if n[i] else None,
                "encoder": arrows[i].tolist(),
                "centroid": centroid[i].tolist() if n[i] else None,
            }
            for i, child in enumerate(family.children)
        ],
        "points": [[*xy, i] for xy, i in zip(points[shown].tolist(), label[shown].tolist(), strict=True)],
    }


def _is_nearest(cosine: Float64[Tensor, "children"], own: int) -> bool:
    """Whether the own centroid is nearer than any other. Of children without a centroid the cosine is NaN."""
    others = torch.cat([cosine[:own], cosine[own + 1 :]])
    return bool((cosine[own] > others[others.isfinite()]).all())


def _points(
    subject: Subject, family: UmapFamily, config: GeometryConfig
) -> tuple[Int[Tensor, "points"], Int[Tensor, "points"]]:
    """Activations of a family, and which of its children fires most strongly on each (of equals, the first)."""
    best = torch.zeros(len(subject.rows))
    label = torch.full((len(subject.rows),), -1)
    for i, child in enumerate(family.children):
        token, value = subject.pairs.firings(child)
        token = token.long()
        stronger = value > best[token]
        best[token[stronger]] = value[stronger]
        label[token[stronger]] = i
    of_child = [(label == i).nonzero().flatten() for i in range(len(family.children))]
    rows = torch.cat(
        [
            _sample(rows, config.max_points, config.seed, child)
            for rows, child in zip(of_child, family.children, strict=True)
        ]
    ).sort()[0]
    return rows, label[rows]


def _sample(rows: Int[Tensor, "n"], n: int, seed: int, feature: int) -> Int[Tensor, "m"]:
    """`n` of the rows at most, ascending; which of them depends on the seed and on the feature alone."""
    drawn = np.random.default_rng((seed, feature)).permutation(len(rows))[:n]
    return rows[torch.from_numpy(drawn)].sort()[0]


class Plane(NamedTuple):
    """axes: the first two principal components, rows. explained: the share of the variance in each."""

    axes: Float64[Tensor, "2 d"]
    explained: Float64[Tensor, "2"]


def principal_plane(u: Float64[Tensor, "n d"]) -> Plane | None:
    """Of the points `u`; None where they vary in fewer than two dimensions.

    An axis has no sign of its own: its largest entry is made positive.
    """
    n, d = u.shape
    centred = (u - u.mean(0)).numpy()
    covariance = centred.T @ centred / n
    total = np.trace(covariance)
    if d < 2 or total <= _NO_VARIANCE * float(u.square().sum() / n):
        return None
    variance, axes = eigh(covariance, subset_by_index=[d - 2, d - 1])
    explained, axes = variance[::-1] / total, axes.T[::-1]
    if explained[1] <= _NO_VARIANCE:
        return None
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    return Plane(torch.from_numpy(axes * np.sign(largest)), torch.from_numpy(explained.copy()))


def _agreement(entries: Sequence[dict[str, Any]]) -> tuple[Estimate, float | None]:
    """`agreement`, `toward` and `explained_2`, and the agreement that chance would give."""
    looked_at = [entry for entry in entries if "children" in entry]
    families = [[child for child in entry["children"] if child["cosine"] is not None] for entry in looked_at]
    children = [child for family in families for child in family]
    columns = {
        "agreement": np.array([child["agrees"] for child in children], dtype=np.float64),
        "toward": np.array([child["cosine"] for child in children], dtype=np.float64),
    }
    explained = np.array([sum(entry["explained"]) for entry in looked_at], dtype=np.float64)
    # The children of a family share its plane, so families are resampled, each with all its children.
    family = np.repeat(np.arange(len(families)), [len(f) for f in families])
    of_children = estimate(lambda w: _means(columns, w[:, family]), len(families))
    of_families = estimate(lambda w: _means({"explained_2": explained}, w), len(looked_at))
    # The k children of a family agree with chance 1/k each: every family adds 1.
    chance = len(families) / len(children) if children else None
    return Estimate(
        of_children.value | of_families.value, of_children.interval | of_families.interval
    ), chance


def _means(columns: dict[str, FloatArray], weights: FloatArray) -> dict[str, FloatArray]:
    """The mean of each column over the units for which it is defined."""
    defined = {name: np.isfinite(column) for name, column in columns.items()}
    return {
        name: weights @ np.where(defined[name], column, 0) / (weights @ defined[name])
        for name, column in columns.items()
    }


def _reasons(forest: Forest, entries: Sequence[dict[str, Any]], config: GeometryConfig) -> dict[str, str]:
    """Why a value is undefined, if it is."""
    fired = f"that fired {config.min_count} times or more"
    if forest.edges.numel():
        beneath = f"no parent has {_LEAST_CHILDREN} to {_MOST_CHILDREN} children {fired}"
        sibling = f"no parent has 2 children in one layer {fired}"
    else:
        beneath = sibling = "the forest has no edges: every feature hangs from the root"
    if entries:
        beneath = "none of the families could be looked at: detail.families says why"
    return {
        **dict.fromkeys(("agreement", "toward", "explained_2"), beneath),
        "sibling_cosine": sibling,
        "unrelated_cosine": f"{sibling}, or every family is all of its layer",
    }


class Siblings:
    """Families of two or more usable children of one parent in one layer, and their decoder rows.

    member: the family of each feature, -1 for one in none. parent: of each family; families are in ascending order
    of layer, then parent.
    """

    def __init__(
        self, decoder: Float64[Tensor, "d_sae d_in"], forest: Forest, usable: Bool[Tensor, "d_sae"]
    ) -> None:
        self.decoder, self.layer, self.usable = F.normalize(decoder), forest.layer, usable
        key = torch.where(usable & (forest.parent != ROOT), forest.layer * forest.d_sae + forest.parent, -1)
        keys, place, size = key.unique(return_inverse=True, return_counts=True)
        real = (keys >= 0) & (size >= 2)
        self.member = torch.where(real, real.cumsum(0) - 1, -1)[place]
        self.parent, self.family_layer = keys[real] % forest.d_sae, keys[real] // forest.d_sae
        self.size = size[real]

    def cosines(self) -> Estimate:
        """`sibling_cosine` and `unrelated_cosine`. All pairs at once, from sums of unit rows."""
        inside = self.member >= 0
        of_family = _sums(self.decoder[inside], self.member[inside], len(self.parent))
        n_layers = int(self.layer.max()) + 1
        of_layer = _sums(self.decoder[self.usable], self.layer[self.usable], n_layers)
        outside = of_layer[self.family_layer] - of_family
        n_outside = torch.bincount(self.layer[self.usable], minlength=n_layers)[self.family_layer] - self.size
        sibling = (of_family.square().sum(1) - self.size) / (self.size * (self.size - 1))
        # A family that is its whole layer has no unrelated feature: 0 / 0.
        unrelated = torch.where(n_outside > 0, (of_family * outside).sum(1), torch.nan) / (
            self.size * n_outside
        )
        columns = {"sibling_cosine": sibling.numpy(), "unrelated_cosine": unrelated.numpy()}
        return estimate(lambda w: _means(columns, w), len(self.parent))

    def picture(self, n_families: int, seed: int) -> dict[str, Any]:
        """Decoder rows of some families, and of as many features of the same layers from other families, by UMAP."""
        if n_families == 0:
            return {"why": "umap_families = 0"}
        if find_spec("umap") is None:
            return {"why": "needs the package umap-learn: pip install 'saeforest[umap]'"}
        generator = np.random.default_rng(seed)
        fitting = (self.size >= _UMAP_LEAST).nonzero().flatten().numpy()
        shown = np.sort(generator.permutation(fitting)[:n_families])
        if not len(shown):
            return {"why": f"no parent has {_UMAP_LEAST} children in one layer that fired often enough"}
        groups = [
            np.sort(generator.permutation((self.member == int(f)).nonzero().flatten().numpy())[:_UMAP_MOST])
            for f in shown
        ]
        features = np.concatenate(groups)
        label = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        unrelated = self._unrelated(features, shown, generator)
        features = np.concatenate([features, unrelated])
        label = np.concatenate([label, np.full(len(unrelated), -1)])
        if len(features) <= _UMAP_LEAST:  # UMAP cannot start from so few
            return {"why": f"{len(features)} features are too few"}
        xy = umap_plane(self.decoder[torch.from_numpy(features)].numpy(), seed)
        return {
            "points": [[*place, own] for place, own in zip(xy.tolist(), label.tolist(), strict=True)],
            "features": features.tolist(),
            "parents": self.parent[torch.from_numpy(shown)].tolist(),
        }

    def _unrelated(
        self, features: Int[np.ndarray, "n"], shown: Int[np.ndarray, "f"], generator: np.random.Generator
    ) -> Int[np.ndarray, "m"]:
        """As many usable features of each layer as are given of it, where there are; none of the shown families."""
        free = self.usable.numpy() & ~np.isin(self.member.numpy(), shown)
        layer = self.layer.numpy()
        wanted = np.bincount(layer[features])
        drawn = [
            generator.permutation((free & (layer == i)).nonzero()[0])[: wanted[i]] for i in range(len(wanted))
        ]
        return np.sort(np.concatenate(drawn))


def _sums(
    rows: Float64[Tensor, "n d"], group: Int[Tensor, "n"], n_groups: int
) -> Float64[Tensor, "n_groups d"]:
    return torch.zeros(n_groups, rows.shape[1], dtype=rows.dtype).index_add_(0, group, rows)


def umap_plane(rows: FloatArray, seed: int) -> FloatArray:
    """`[n, 2]` of directions `[n, d]`, four or more; the same for a seed, to the last bit.

    The first call of a process compiles for some ten seconds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries beneath it, and that a seed means one thread
        from umap import UMAP

        neighbours = min(_UMAP_NEIGHBOURS, len(rows) - 1)
        plane = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
        return np.asarray(plane.fit_transform(rows), dtype=np.float64)


SPEC = Study(
    name="geometry",
    needs=frozenset({"firings", "activations", "forest"}),
    transcoders=False,  # it holds decoder rows against the activations that are read
    sets=("paper",),
    config=GeometryConfig,
    run=geometry,
    memory=lambda size: size.decoder,
)
