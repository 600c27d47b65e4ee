"""The papers' claims on how systems compare (`data/*.claims.yaml`), which the report checks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from pydantic import Field

from ..errors import InputError
from ..files import read_yaml
from ..saes import SYSTEMS
from ..schema import Name, checked, listed
from .papers import CLAIMS_SUFFIX, DATA, Data, Paper, ablations, check_systems, papers
from .seed_groups import SeedGroup
from .verdict import Claim, Null, PaperValue, Relation, Result, Side, check


class _Claim(Data):
    """A claim in a claims file. A claim without `where` is not in the paper.

    needs_null: name of one of the file's nulls. The other fields are those of `Claim`; `paper` is its `said`.
    """

    claim: Name
    where: Name = ""
    left: Side
    relation: Relation
    right: Side | float
    margin: float = 0.0
    paper: Name = ""
    paper_value: PaperValue | None = None
    needs_null: Name | None = None


class _File(Data):
    """A claims file: nulls by name, and claims by topic."""

    nulls: dict[Name, Null] = Field(default_factory=dict)
    claims: dict[Name, tuple[_Claim, ...]]


@cache
def claims() -> tuple[Claim, ...]:
    """The claims of all papers. Raises InputError, naming the file, if one is malformed."""
    found: list[Claim] = []
    for name, paper in papers().items():
        path = DATA / f"{name}{CLAIMS_SUFFIX}"
        file = checked(_File, read_yaml(path), path)
        for topic, claims_of_topic in file.claims.items():
            for claim in claims_of_topic:
                sides = (side for side in (claim.left, claim.right) if isinstance(side, Side))
                check_systems({side.kind for side in sides}, {*SYSTEMS, *ablations()}, path)
                if claim.needs_null not in (None, *file.nulls):
                    raise InputError(
                        f"{path}: no such null: {claim.needs_null}; expected {listed(file.nulls)}"
                    )
                found.append(_claim(topic, claim, file, paper))
    return tuple(found)


def _claim(topic: str, claim: _Claim, file: _File, paper: Paper) -> Claim:
    return Claim(
        topic,
        claim.claim,
        paper if claim.where else None,
        claim.where,
        claim.left,
        claim.relation,
        claim.right,
        said=claim.paper,
        margin=claim.margin,
        paper_value=claim.paper_value,
        null=file.nulls[claim.needs_null] if claim.needs_null else None,
    )


def check_all(groups: Sequence[SeedGroup]) -> list[Result]:
    """Check all claims against the measured SAEs."""
    return [check(claim, groups) for claim in claims()]
