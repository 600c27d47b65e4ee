"""Where children lie: among their parent's activations, and in the decoder.

**Beneath a parent** (Tree SAE, section 6.1, Figure 9). The points of a family are the activations on which any of its
children fires, in the SAE's units, each labeled with the child that fires most strongly. The points and each child's
encoder direction e_c are projected onto the points' first two principal components. With the origin at the mean of
the points, and m_c the mean of the points labeled c, all within that plane,

    toward       mean over children of cos(e_c, m_c)
    agreement    fraction of children whose e_c is nearer (by cosine) to their own m_c than to any sibling's
    explained_2  fraction of the points' variance that lies in the plane, mean over families

The paper shows three families and says that in two of them encoder directions point toward their clusters. Random
directions would agree for one in k children of a family of k: `detail["chance"]`. This is no null for an SAE, because
the labels come from the encoder whose direction is tested: an untrained tree agrees far more often. The authors' code
takes all descendants, raw activations and the first child by rank; this measure takes direct children, the SAE's units
and the strongest child. If no families are named, those that overlap least are chosen, since the paper blames overlap
where directions miss: the values then describe favorable families, not all.

**In the decoder** (as in the HSAE paper's picture of siblings). A family is the children of one parent in one layer.
Over ordered pairs (a, b) of a family, a != b, with unit decoder rows d,

    sibling_cosine    mean of d_a . d_b
    unrelated_cosine  mean of d_a . d_b', where b' is any feature of that layer outside the family

Both are means over families, so that large families count no more than small ones. If umap-learn is installed, the
record also holds a UMAP picture of some families; nothing is measured in it.

Only features that fired `min_count` times or more are included.
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
from ..saes import SAE
from ..structure.forest import ROOT, Forest
from .bootstrap import Estimate, FloatArray, estimate, interval_method, units_of_sae
from .record import EdgeScores, Record, undefined
from .spec import Study
from .subject import Subject

# Families of this size are chosen by default. A larger family that the user names is cut to its most frequent children.
_LEAST_CHILDREN, _MOST_CHILDREN = 3, 8
_STORED_POINTS = 600
# Variance below this fraction of the mean square is rounding error.
_NO_VARIANCE = 1e-12
# The UMAP picture: least and most features of a family (fewer form no cluster, more would hide the other families),
# and its neighbors.
_UMAP_LEAST, _UMAP_MOST, _UMAP_NEIGHBORS = 3, 20, 15


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


class ParentFamily(NamedTuple):
    """A parent and its children that fire often enough.

    overlap: fraction of the `n` activations on which two or more of the children fire.
    n:       number of activations on which any of the children fires.
    """

    parent: int
    children: list[int]
    overlap: float
    n: int


def geometry(subject: Subject, config: GeometryConfig) -> Record:
    """The record "geometry". Raises InputError if `config.parents` names a feature that the SAE does not have."""
    forest, n_fired = subject.forest, subject.pairs.marginals.n
    for parent in config.parents:
        if not 0 <= parent < forest.d_sae:
            raise InputError(f"geometry.parents: feature {parent}: expected 0 to {forest.d_sae - 1}")
    usable = n_fired >= config.min_count
    parents = config.parents or tuple(f.parent for f in choose_families(subject, usable, config.families))
    entries = []
    with progress("geometry", len(parents), "families") as advance:
        for parent in parents:
            entries.append(_beneath(subject, usable, parent, config))
            advance(1)

    siblings = Siblings(subject.sae.W_dec.detach().double().cpu(), forest, usable)
    beneath, chance = _agreement(entries, subject.sae)
    decoder = siblings.cosines(subject.sae)
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
        replicates=beneath.replicates | decoder.replicates,
        edge_scores=_edge_scores(entries) | {"sibling_cosine": siblings.edge_scores()},
    )


def choose_families(subject: Subject, usable: Bool[Tensor, "d_sae"], n: int) -> list[ParentFamily]:
    """The `n` families with 3 to 8 usable children that overlap least.

    Ties go to the family with the most activations, then to the lowest parent.
    """
    above = subject.forest.parent[usable]
    parents, n_children = above[above != ROOT].unique(return_counts=True)
    fitting = parents[(n_children >= _LEAST_CHILDREN) & (n_children <= _MOST_CHILDREN)]
    found = [_family(subject, usable, int(parent)) for parent in fitting]
    return sorted(found, key=lambda family: (family.overlap, -family.n, family.parent))[:n]


def _family(subject: Subject, usable: Bool[Tensor, "d_sae"], parent: int) -> ParentFamily:
    n_fired = subject.pairs.marginals.n
    children = [c for c in subject.forest.children(parent) if usable[c]]
    children = sorted(sorted(children, key=lambda c: -int(n_fired[c]))[:_MOST_CHILDREN])
    if not children:
        return ParentFamily(parent, [], 0.0, 0)
    times = torch.cat([subject.pairs.firings(c)[0] for c in children]).unique(return_counts=True)[1]
    return ParentFamily(parent, children, float((times > 1).double().mean()), len(times))


def _beneath(
    subject: Subject, usable: Bool[Tensor, "d_sae"], parent: int, config: GeometryConfig
) -> dict[str, Any]:
    """The record's entry for one family, or its parent and why there is no result."""
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
    # A child that is never the strongest has no centroid.
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
    """Whether a child's own centroid is the nearest. The cosine is NaN for children without a centroid."""
    others = torch.cat([cosine[:own], cosine[own + 1 :]])
    return bool((cosine[own] > others[others.isfinite()]).all())


def _points(
    subject: Subject, family: ParentFamily, config: GeometryConfig
) -> tuple[Int[Tensor, "points"], Int[Tensor, "points"]]:
    """Activations of a family, and which of its children fires most strongly on each; ties go to the first."""
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
    """At most `n` of the rows, ascending, drawn by the seed and the feature alone."""
    drawn = np.random.default_rng((seed, feature)).permutation(len(rows))[:n]
    return rows[torch.from_numpy(drawn)].sort()[0]


class Plane(NamedTuple):
    """The plane of the first two principal components.

    axes:      unit vectors, one a row.
    explained: fraction of the variance along each.
    """

    axes: Float64[Tensor, "2 d"]
    explained: Float64[Tensor, "2"]


def principal_plane(u: Float64[Tensor, "n d"]) -> Plane | None:
    """The principal plane of the points `u`; None if they vary in fewer than two dimensions.

    The sign of an axis is arbitrary, so its largest entry is made positive.
    """
    n, d = u.shape
    centered = (u - u.mean(0)).numpy()
    total = float(np.square(centered).sum() / n)
    if min(d, n) < 2 or total <= _NO_VARIANCE * float(u.square().sum() / n):
        return None
    # Few points have as many products, with the same eigenvalues as the covariance.
    few = n < d
    products = centered @ centered.T if few else centered.T @ centered
    variance, axes = eigh(products / n, subset_by_index=[min(d, n) - 2, min(d, n) - 1])
    explained, axes = variance[::-1] / total, axes.T[::-1]
    if explained[1] <= _NO_VARIANCE:
        return None
    if few:
        axes = axes @ centered
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    return Plane(torch.from_numpy(axes * np.sign(largest)), torch.from_numpy(explained.copy()))


def _agreement(entries: Sequence[dict[str, Any]], sae: SAE) -> tuple[Estimate, float | None]:
    """`agreement`, `toward` and `explained_2`, and the agreement expected by chance."""
    looked_at = [entry for entry in entries if "children" in entry]
    families = [[child for child in entry["children"] if child["cosine"] is not None] for entry in looked_at]
    children = [child for family in families for child in family]
    columns = {
        "agreement": np.array([child["agrees"] for child in children], dtype=np.float64),
        "toward": np.array([child["cosine"] for child in children], dtype=np.float64),
    }
    explained = np.array([sum(entry["explained"]) for entry in looked_at], dtype=np.float64)
    # Children of a family share its plane, so families are resampled, each with all its children.
    family = np.repeat(np.arange(len(families)), [len(f) for f in families])
    units = units_of_sae("parents", sae, np.array([entry["parent"] for entry in looked_at]))
    of_children = estimate(lambda w: _means(columns, w[:, family]), len(families), units)
    of_families = estimate(lambda w: _means({"explained_2": explained}, w), len(looked_at), units)
    # Each of the k children of a family agrees with probability 1/k, so a family adds 1 to the expected count.
    chance = len(families) / len(children) if children else None
    return of_children.joined(of_families), chance


def _edge_scores(entries: Sequence[dict[str, Any]]) -> dict[str, EdgeScores]:
    """The cosine of each child with its own cluster, and whether it is the nearest."""
    families = [entry["children"] for entry in entries if "children" in entry]
    compared = [child for family in families for child in family if child["cosine"] is not None]
    children = torch.tensor([child["child"] for child in compared], dtype=torch.int64)
    return {
        value: EdgeScores(children, torch.tensor([child[name] for child in compared], dtype=torch.float64))
        for value, name in (("agreement", "agrees"), ("toward", "cosine"))
    }


def _means(columns: dict[str, FloatArray], weights: FloatArray) -> dict[str, FloatArray]:
    """The mean of each column over the units for which it is defined."""
    defined = {name: np.isfinite(column) for name, column in columns.items()}
    return {
        name: weights @ np.where(defined[name], column, 0) / (weights @ defined[name])
        for name, column in columns.items()
    }


def _reasons(forest: Forest, entries: Sequence[dict[str, Any]], config: GeometryConfig) -> dict[str, str]:
    """For each value, the reason to give if it is undefined."""
    fired = f"that fired {config.min_count} times or more"
    if forest.edges.numel():
        beneath = f"no parent has {_LEAST_CHILDREN} to {_MOST_CHILDREN} children {fired}"
        sibling = f"no parent has 2 children in one layer {fired}"
    else:
        beneath = sibling = "the forest has no edges: every feature hangs from the root"
    if entries:
        beneath = "no family could be measured: detail.families says why"
    return {
        **dict.fromkeys(("agreement", "toward", "explained_2"), beneath),
        "sibling_cosine": sibling,
        "unrelated_cosine": f"{sibling}, or every family fills its layer",
    }


class Siblings:
    """Families of two or more usable children of one parent in one layer, and their decoder rows.

    member:       the family of each feature, or -1.
    parent:       the parent of each family, in ascending order of layer, then parent.
    family_layer: the layer of each family.
    size:         the number of features in each family.
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

    def cosines(self, sae: SAE) -> Estimate:
        """`sibling_cosine` and `unrelated_cosine`, over all pairs at once by sums of unit rows."""
        inside = self.member >= 0
        of_family = _sums(self.decoder[inside], self.member[inside], len(self.parent))
        n_layers = int(self.layer.max()) + 1
        of_layer = _sums(self.decoder[self.usable], self.layer[self.usable], n_layers)
        outside = of_layer[self.family_layer] - of_family
        n_outside = torch.bincount(self.layer[self.usable], minlength=n_layers)[self.family_layer] - self.size
        sibling = (of_family.square().sum(1) - self.size) / (self.size * (self.size - 1))
        # A family that fills its layer has no unrelated feature: 0 / 0.
        unrelated = torch.where(n_outside > 0, (of_family * outside).sum(1), torch.nan) / (
            self.size * n_outside
        )
        columns = {"sibling_cosine": sibling.numpy(), "unrelated_cosine": unrelated.numpy()}
        units = units_of_sae("families", sae, self.parent)
        return estimate(lambda w: _means(columns, w), len(self.parent), units)

    def edge_scores(self) -> EdgeScores:
        """The mean cosine of each child's decoder row with those of its siblings."""
        child = (self.member >= 0).nonzero().flatten()
        family, rows = self.member[child], self.decoder[child]
        others = _sums(rows, family, len(self.parent))[family] - rows
        return EdgeScores(child, (rows * others).sum(1) / (self.size[family] - 1))

    def picture(self, n_families: int, seed: int) -> dict[str, Any]:
        """UMAP of decoder rows: some families, and equally many features from other families of the same layers."""
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
        if len(features) <= _UMAP_LEAST:  # UMAP's spectral start needs more
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
        """Usable features outside the shown families: as many of each layer as `features` has, if there are enough."""
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
    """UMAP of four or more directions `[n, d]` into a plane, `[n, 2]`. A seed gives the same bits every time.

    The first call in a process takes some ten seconds to compile.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from its dependencies, and that a seed means a single thread
        from umap import UMAP

        neighbors = min(_UMAP_NEIGHBORS, len(rows) - 1)
        plane = UMAP(n_neighbors=neighbors, metric="cosine", random_state=seed, n_jobs=1)
        return np.asarray(plane.fit_transform(rows), dtype=np.float64)


SPEC = Study(
    name="geometry",
    needs=frozenset({"firings", "activations", "forest"}),
    transcoders=False,  # it compares decoder rows with input activations
    sets=("paper", "truth"),
    config=GeometryConfig,
    run=geometry,
    nulls=("agreement", "toward", "sibling_cosine"),
    memory=lambda size: size.decoder,
    version=3,
)
