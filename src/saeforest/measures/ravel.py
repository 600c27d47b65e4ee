"""RAVEL: can features change one attribute of an entity and no other (docs/spec/ravel.md)?

The language model is asked for attributes of entities, in prompts that it completes rightly. For an attribute, with f_b
and f_s the codes at the last token of the base's and of the source's entity, the activation of the base becomes

    x' = decode((1 - m) f_b + m f_s)        m_i = sigmoid(z_i / T) in training, 1 if z_i > 0 else 0 after it

A mask z for each attribute is trained (Adam; T falls from 1 to 1e-4) on the cross-entropy of the first completed token,
which should be the source's where the prompts ask for this attribute (cause), and stay the base's where they ask for
another (isolation). On test pairs,

    cause = share of completions that name the source's value    isolation = share that name the base's
    disentanglement = (cause + isolation) / 2, mean over attributes, then over kinds of entities

`..._random` swaps random features that are active as often in place of the mask's, `..._all` swaps all, `..._none`
none, which leaves the reconstruction alone. `..._subtree` swaps with each feature of the mask all that is below it in
the forest, and `..._subtree_shuffled` all that would be if parents were shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool

from ..errors import InputError
from ..structure.forest import Forest
from ..text.facts import FACTS, Facts, read_facts
from .bootstrap import FloatArray, estimate, interval_method, same_units
from .columns import INTERPRETABILITY, Column
from .matched import alike
from .ravel_prompts import Known, Pair, divided, entity_activations, known_prompts, pairs_of
from .ravel_swap import Site, completed, swap_of, train_mask
from .record import Record, undefined
from .spec import Study
from .subject import Subject
from .subtrees import why_none, with_all_below, with_shuffled

Split = Literal["entities", "pairs"]
_SCORES = ("cause", "isolation", "disentanglement")
_BASELINES = ("random", "all", "none")
_SUBTREES = ("subtree", "subtree_shuffled")
# Differences in disentanglement, by the end of their names.
_OVER = {"_over_random": ("", "_random"), "_subtree_over_shuffled": ("_subtree", "_subtree_shuffled")}
# With fewer pairs of either sort to train or to test on, an attribute is left out.
_LEAST_PAIRS = 3
_SHOWN = 20


@dataclass(frozen=True)
class RavelConfig:
    """Which facts are asked for, and how the masks are trained."""

    source: str = FACTS
    """Facts: built-in:facts (countries, cities, persons), a folder with RAVEL's JSON files, or a Hub data set of them
    (adamkarvonen/ravel_prompts)."""
    kinds: tuple[str, ...] = ()
    """Kinds of entities with their attributes, as in city:Country,Continent,Language. By default all of the built-in
    facts, and of other sources SAEBench's six attributes of cities and Nobel prize winners."""
    pairs: int = 60
    """Largest number of pairs of prompts for each attribute that should change it; as many should not."""
    entities: int = 500
    """Largest number of entities of each kind: those of which the model knows most."""
    split: Split = "entities"
    """What the masks are tested on: pairs of other entities than they were trained on or, as in SAEBench, other
    pairs of the same entities."""
    train: float = 0.7
    """Fraction of entities or pairs to train on."""
    epochs: int = 2
    """Number of passes over the training pairs."""
    batch_size: int = 16
    """Number of pairs in a training step."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    n_tokens: int = 6
    """Largest number of tokens of a completion."""
    error: bool = False
    """Add the error of the reconstruction to the changed activation. SAEBench does not."""
    seed: int = 42
    """Random seed for drawing pairs and random features."""

    def __post_init__(self) -> None:
        for name, least in (
            ("pairs", 1),
            ("entities", 2),
            ("epochs", 1),
            ("batch_size", 1),
            ("n_tokens", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(f"ravel.{name} = {getattr(self, name)}: expected {least} or more")
        if self.split not in get_args(Split):
            raise InputError(f"ravel.split = {self.split!r}: expected entities or pairs")
        if not 0 < self.train < 1:
            raise InputError(f"ravel.train = {self.train}: expected a fraction above 0 and below 1")
        if not self.lr > 0:
            raise InputError(f"ravel.lr = {self.lr}: expected a number above 0")
        self.attributes()

    def attributes(self) -> dict[str, tuple[str, ...]]:
        """The attributes of each kind of entity; empty for all."""
        if not self.kinds:
            return {} if self.source == FACTS else dict(_SAEBENCH)
        found = {}
        for text in self.kinds:
            kind, colon, names = (part.strip() for part in text.partition(":"))
            if not kind or (colon and not names):
                raise InputError(
                    f"ravel.kinds = {text!r}: expected a kind with its attributes, as in city:Country,Language"
                )
            found[kind] = tuple(name.strip() for name in names.split(",") if name.strip())
        return found


_SAEBENCH = {
    "city": ("Country", "Continent", "Language"),
    "nobel_prize_winner": ("Country of Birth", "Field", "Gender"),
}


class _Tested(NamedTuple):
    """Test pairs of an attribute: the entity of each base, which should change, and where each mask was right."""

    kind: str
    attribute: str
    entity: list[tuple[str, str]]
    cause: Bool[np.ndarray, "n"]
    right: dict[str, Bool[np.ndarray, "n"]]


def ravel(subject: Subject, config: RavelConfig) -> Record:
    """The record "ravel".

    Values are `disentanglement`, `cause` and `isolation`, each also with `_random`, `_all`, `_none`, `_subtree` and
    `_subtree_shuffled`, and the differences `disentanglement_over_random` and
    `disentanglement_subtree_over_shuffled`. `features` is the mean number of features in a mask.
    `detail["kinds"]` says how many prompts were asked and known of each kind; `detail["attributes"]` has the values of
    each attribute.

    Raises InputError if the facts can't be read.
    """
    facts = read_facts(config.source, config.attributes())
    no_subtrees = why_none(subject.forest, subject.sae.in_reconstruction.cpu().numpy())
    rng = np.random.default_rng(config.seed)
    tested: list[_Tested] = []
    kinds: dict[str, dict[str, int]] = {}
    entries: list[dict[str, Any]] = []
    for of in facts:
        known, asked = known_prompts(subject.reader, of, config.n_tokens, config.entities)
        kinds[of.kind] = {
            "asked": asked,
            "known": len(known),
            "entities": len({one.ask.entity for one in known}),
        }
        if not known:
            continue
        swap = swap_of(subject.sae, entity_activations(subject.reader, known), config.error)
        forests = [] if no_subtrees else with_shuffled(subject.forest, (swap.f > 0).sum(0).cpu(), 1)
        for attribute in of.templates:
            one, entry = _measured(Site(subject.reader, known, swap), forests, of, attribute, config, rng)
            entries.append(entry)
            tested += [] if one is None else [one]
    return _record(subject, config, tested, kinds, entries, no_subtrees)


def _measured(
    site: Site,
    forests: Sequence[Forest],
    facts: Facts,
    attribute: str,
    config: RavelConfig,
    rng: np.random.Generator,
) -> tuple[_Tested | None, dict[str, Any]]:
    """An attribute's test pairs, None if there are too few, and its entry in the detail.

    forests: the forest, and one with shuffled parents; none if it has no subtrees.
    """
    others = [other for other in facts.templates if other != attribute]
    train, test = _pairs(site.known, attribute, others, config, rng)
    entry: dict[str, Any] = {
        "kind": facts.kind,
        "attribute": attribute,
        "train_pairs": len(train),
        "test_pairs": len(test),
    }
    for pairs in (train, test):
        if min(sum(p.cause for p in pairs), sum(not p.cause for p in pairs)) < _LEAST_PAIRS:
            return None, entry | {
                "left_out": f"fewer than {_LEAST_PAIRS} pairs of prompts that the model knows"
            }
    mask = train_mask(site, train, config.epochs, config.batch_size, config.lr, rng) > 0
    fired = (site.swap.f > 0).double().sum(0).cpu().numpy()
    usable = fired > 0
    random = torch.zeros_like(mask)
    random[torch.from_numpy(alike(np.flatnonzero(mask.cpu().numpy()), fired, usable, rng))] = True
    masks = {"": mask, "random": random, "all": torch.ones_like(mask), "none": torch.zeros_like(mask)}
    for name, forest in zip(_SUBTREES, forests, strict=False):
        masks[name] = torch.from_numpy(with_all_below(forest, mask.cpu().numpy())).to(mask.device)
    right = {name: completed(site, test, m.float(), config.n_tokens) for name, m in masks.items()}
    cause = np.array([p.cause for p in test])
    chosen = mask.nonzero().flatten().tolist()
    entry |= {
        "features": len(chosen),
        "random_features": int(random.sum()),
        **{
            f"{name}_features": int((masks[name].cpu().numpy() & usable).sum())
            for name in _SUBTREES
            if forests
        },
        "of_active": int(usable.sum()),
        "first_features": sorted(chosen, key=lambda i: (-fired[i], i))[:_SHOWN],
    }
    entry |= {
        f"{score}{'_' if name else ''}{name}": float(of[cause == (score == "cause")].mean())
        for name, of in right.items()
        for score in _SCORES[:2]
    }
    entity = [(facts.kind, site.known[p.base].ask.entity) for p in test]
    return _Tested(facts.kind, attribute, entity, cause, right), entry


def _pairs(
    known: Sequence[Known],
    attribute: str,
    others: Sequence[str],
    config: RavelConfig,
    rng: np.random.Generator,
) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train and to test on."""
    if config.split == "pairs":
        pairs = pairs_of(known, attribute, others, config.pairs, rng)
        pairs = [pairs[i] for i in rng.permutation(len(pairs))]
        n = int(len(pairs) * config.train)
        return pairs[:n], pairs[n:]
    place = {id(one): i for i, one in enumerate(known)}
    found = []
    for part, share in zip(divided(known, config.train, rng), (config.train, 1 - config.train), strict=True):
        n = max(round(share * config.pairs), 1)
        pairs = pairs_of(part, attribute, others, n, rng)
        found.append([Pair(place[id(part[p.base])], place[id(part[p.source])], p.cause) for p in pairs])
    return found[0], found[1]


def _record(
    subject: Subject,
    config: RavelConfig,
    tested: list[_Tested],
    kinds: dict[str, dict[str, int]],
    entries: list[dict[str, Any]],
    no_subtrees: str | None,
) -> Record:
    entities = sorted({entity for one in tested for entity in one.entity})
    place = {entity: i for i, entity in enumerate(entities)}
    rows = [np.array([place[entity] for entity in one.entity], dtype=np.int64) for one in tested]

    def share(weights: FloatArray, i: int, mask: str, cause: bool) -> FloatArray:
        mine = rows[i][tested[i].cause == cause]
        right = tested[i].right[mask][tested[i].cause == cause].astype(np.float64)
        return weights[:, mine] @ right / weights[:, mine].sum(1)

    def mean(weights: FloatArray, mask: str, cause: bool) -> FloatArray:
        of_kind = {
            one.kind: [i for i, other in enumerate(tested) if other.kind == one.kind] for one in tested
        }
        each = [np.mean([share(weights, i, mask, cause) for i in some], axis=0) for some in of_kind.values()]
        return np.mean(each, axis=0)

    ends = ("", *(f"_{name}" for name in (*_BASELINES, *_SUBTREES)))
    measured = [end for end in ends if not (no_subtrees and end[1:] in _SUBTREES)]

    def formula(weights: FloatArray) -> dict[str, FloatArray]:
        found: dict[str, FloatArray] = {}
        for end in measured:
            cause, isolation = (mean(weights, end[1:], should) for should in (True, False))
            found |= dict(
                zip((f"{s}{end}" for s in _SCORES), (cause, isolation, (cause + isolation) / 2), strict=True)
            )
        for name, (one, other) in _OVER.items():
            if other in measured:
                found[f"disentanglement{name}"] = (
                    found[f"disentanglement{one}"] - found[f"disentanglement{other}"]
                )
        return found

    names = [
        *(f"{score}{end}" for end in ends for score in _SCORES),
        *(f"disentanglement{name}" for name in _OVER),
    ]
    why = dict.fromkeys(names, _nothing(kinds))
    if no_subtrees:
        why |= {name: no_subtrees for name in names if "_subtree" in name}
    if tested:
        found = estimate(
            formula, len(entities), same_units("entities", np.array([f"{k} {e}" for k, e in entities]))
        )
        value = {name: found.value.get(name) for name in names}
        interval = {name: found.interval.get(name) for name in names}
        replicates = found.replicates
    else:
        value, interval, replicates = dict.fromkeys(names), dict.fromkeys(names), {}
    masks = [entry["features"] for entry in entries if "features" in entry]
    value = {**value, "features": float(np.mean(masks)) if masks else None, "attributes": float(len(tested))}
    why["features"] = why["cause"]
    asked = sum(kind["asked"] for kind in kinds.values())
    return Record(
        "ravel",
        value,
        {**interval, "features": None, "attributes": None},
        unit="share of completions",
        tokens=asked,
        settings={
            **subject.settings,
            "config": asdict(config),
            "data": config.source,
            "intervention": "at the last token of the entity; the error of the reconstruction "
            + ("kept" if config.error else "not kept"),
            "shuffled": "parents exchanged among edges of one layer of children and one of parents, whose parents are "
            "active at about as many entities",
            "interval_method": interval_method("entities of the base prompts") + "; masks held fixed",
        },
        detail={
            "null": undefined(value, why, 1),
            "units": {"features": "features", "attributes": "attributes"},
            "kinds": kinds,
            "attributes": entries,
        },
        replicates=replicates,
    )


def _nothing(kinds: dict[str, dict[str, int]]) -> str:
    known, asked = (sum(kind[name] for kind in kinds.values()) for name in ("known", "asked"))
    return f"the model completes {known} of {asked} prompts rightly, too few for {_LEAST_PAIRS} pairs of any attribute"


SPEC = Study(
    name="ravel",
    needs=frozenset({"language_model", "forest"}),
    transcoders=False,  # it swaps codes at the site that is read
    config=RavelConfig,
    readings={"saebench_0.6": RavelConfig(split="pairs", pairs=5000)},
    run=ravel,
    columns=(Column(INTERPRETABILITY, "disentanglement", "RAVEL", "↑"),),
    # The dense codes of some hundred prompts, and their differences.
    memory=lambda size: 3 * 4 * 600 * size.d_sae,
    files=lambda config: () if config.source == FACTS else (Path(config.source),),
)
