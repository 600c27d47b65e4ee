"""Facts about entities, and sentences that they complete, in the layout of the RAVEL data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from saeforest.errors import InputError
from saeforest.files import read_json
from saeforest.schema import listed, shown
from saeforest.text.hub import HubName, hub_name

FACTS = "built-in:facts"
_PROMPTS, _VALUES = "ravel_{}_attribute_to_prompts.json", "ravel_{}_entity_attributes.json"


class Facts(NamedTuple):
    """What is known about entities of one kind.

    kind:      the kind: "city".
    templates: by attribute, the beginnings of sentences that its value completes; %s stands for the entity.
    values:    by entity, the value of each attribute.
    """

    kind: str
    templates: Mapping[str, tuple[str, ...]]
    values: Mapping[str, Mapping[str, str]]


def read_facts(source: str, kinds: Mapping[str, tuple[str, ...]]) -> list[Facts]:
    """The facts of `source`, of the given attributes of each kind of entity; all if `kinds` is empty.

    A source is one of

    - `"built-in:facts"`: countries, cities and persons that small models know too.
    - a folder with RAVEL's files `ravel_KIND_attribute_to_prompts.json` (attribute -> templates) and
      `ravel_KIND_entity_attributes.json` (entity -> attribute -> value), for every kind.
    - a data set of the Hub that holds these files: `"adamkarvonen/ravel_prompts"`.

    Raises:
        InputError: the source does not exist or can't be read, a file is missing or damaged, or there is no such kind
            or attribute.
    """
    if source == FACTS:
        found = _built_in()
    else:
        folder = Path(os.path.expanduser(source))
        if not source or not folder.is_dir():
            place = hub_name(source)
            if place is None:
                raise InputError(
                    f"facts '{source}': no such folder; give one with RAVEL's files, a data set of the Hub "
                    f"(adamkarvonen/ravel_prompts), or '{FACTS}'"
                )
            folder = _downloaded(source, place)
        found = _folder(folder)
    for kind in kinds:
        if kind not in found:
            raise InputError(
                f"facts '{source}': expected entities of the kind '{kind}', found {listed(list(found))}"
            )
    return [
        _chosen(facts, kinds.get(kind, ()), source)
        for kind, facts in found.items()
        if not kinds or kind in kinds
    ]


def _built_in() -> dict[str, Facts]:
    data = yaml.safe_load(files("saeforest.text").joinpath("data/facts.yaml").read_text("utf-8"))
    found = {}
    for kind, of in data.items():
        templates = {attribute: tuple(some) for attribute, some in of["templates"].items()}
        values = {e: dict(zip(templates, row, strict=True)) for e, row in of["entities"].items()}
        found[kind] = Facts(kind, templates, values)
    return found


def _folder(folder: Path) -> dict[str, Facts]:
    before, after = _PROMPTS.split("{}")
    kinds = sorted(path.name[len(before) : -len(after)] for path in folder.glob(_PROMPTS.format("*")))
    if not kinds:
        raise InputError(f"{folder}: expected RAVEL's files, such as {_PROMPTS.format('city')}, found none")
    found = {}
    for kind in kinds:
        templates = _checked(folder / _PROMPTS.format(kind), list, "a list of templates")
        values = _checked(folder / _VALUES.format(kind), dict, "the values of its attributes")
        found[kind] = Facts(kind, {a: tuple(map(str, some)) for a, some in templates.items()}, values)
    return found


def _checked(path: Path, kind: type, what: str) -> dict[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict) or not all(isinstance(value, kind) for value in data.values()):
        raise InputError(f"{path}: expected a JSON object that holds {what} under every name")
    return data


def _chosen(facts: Facts, attributes: tuple[str, ...], source: str) -> Facts:
    """The facts of these attributes (all if none are given), without templates that do not name the entity once."""
    for attribute in attributes:
        if attribute not in facts.templates:
            raise InputError(
                f"facts '{source}': expected the attribute '{attribute}' of the kind '{facts.kind}', found "
                f"{listed(list(facts.templates))}"
            )
    chosen = attributes or tuple(facts.templates)
    if len(chosen) < 2:
        raise InputError(
            f"facts '{source}': expected two or more attributes of the kind '{facts.kind}', found "
            f"{listed(list(chosen))}"
        )
    templates = {a: tuple(t for t in facts.templates[a] if t.count("%s") == 1) for a in chosen}
    values = {}
    for entity, of in facts.values.items():
        for attribute in chosen:
            if not isinstance(of.get(attribute, ""), str):
                raise InputError(
                    f"facts '{source}': expected a string as the {attribute} of '{entity}', found "
                    f"{shown(of[attribute])}"
                )
        values[entity] = {a: of[a].strip() for a in chosen if of.get(a, "").strip()}
    return Facts(facts.kind, templates, values)


def _downloaded(source: str, place: HubName) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            place.name, repo_type="dataset", revision=place.revision, allow_patterns="*.json"
        )
    except Exception as error:  # the Hub's client has no common base of its many errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"facts '{source}': not a folder, and the Hub data set can't be read ({reason}); check the name and the "
            f"network, or use '{FACTS}'"
        ) from error
    return Path(folder)
