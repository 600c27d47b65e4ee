"""Facts: those of the package, RAVEL's files good and bad, and the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from saeforest.errors import InputError
from saeforest.text.facts import read_facts


def test_the_built_in_facts() -> None:
    found = {facts.kind: facts for facts in read_facts("built-in:facts", {})}
    assert set(found) == {"country", "city", "person"}
    for facts in found.values():
        assert all(
            t.count("%s") == 1 and not t.startswith("%s") for some in facts.templates.values() for t in some
        )
        assert all(set(values) == set(facts.templates) for values in facts.values.values())
        assert all(
            value == value.strip() != "" for values in facts.values.values() for value in values.values()
        )
    assert found["country"].values["Mexico"] == {
        "Capital": "Mexico City", "Continent": "North America", "Language": "Spanish"
    }  # fmt: skip
    [city] = read_facts("built-in:facts", {"city": ("Country", "Language")})
    assert set(city.templates) == {"Country", "Language"}
    assert city.values["Lyon"] == {"Country": "France", "Language": "French"}


def write(folder: Path, prompts: Any, values: Any) -> str:
    (folder / "ravel_city_attribute_to_prompts.json").write_text(json.dumps(prompts))
    (folder / "ravel_city_entity_attributes.json").write_text(json.dumps(values))
    return str(folder)


def test_ravels_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = {
        "Country": ["%s is in", "no entity", "%s and %s"],
        "Language": ["People in %s speak"],
        "Text": ["%s"],
    }
    values = {
        "Oslo": {"Country": " Norway", "Language": "Norwegian", "Text": 3},
        "Bonn": {"Country": "", "Text": ""},
    }
    source = write(tmp_path, prompts, values)
    [facts] = read_facts(source, {"city": ("Country", "Language")})
    assert facts.templates == {"Country": ("%s is in",), "Language": ("People in %s speak",)}
    assert facts.values == {"Oslo": {"Country": "Norway", "Language": "Norwegian"}, "Bonn": {}}
    with pytest.raises(InputError, match="expected a string as the Text of 'Oslo', found 3"):
        read_facts(source, {})
    with pytest.raises(InputError, match="expected entities of the kind 'river', found"):
        read_facts(source, {"river": ()})
    with pytest.raises(InputError, match="expected the attribute 'Height' of the kind 'city', found"):
        read_facts(source, {"city": ("Country", "Height")})
    with pytest.raises(InputError, match="expected two or more attributes of the kind 'city', found"):
        read_facts(source, {"city": ("Country",)})
    asked: list[Any] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return source

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert read_facts("adamkarvonen/ravel_prompts", {"city": ("Country", "Language")}) == [facts]
    options = {"repo_type": "dataset", "revision": None, "allow_patterns": "*.json"}
    assert asked == [("adamkarvonen/ravel_prompts", options)]

    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(InputError, match=r"can't be read \(no network\); check the name and the network"):
        read_facts("adamkarvonen/ravel_prompts", {})


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"expected RAVEL.s files, such as ravel_city_attribute_to_prompts\.json"
    ):
        read_facts(str(tmp_path), {})
    source = write(tmp_path, {"Country": "%s is in"}, {})
    with pytest.raises(InputError, match="a JSON object that holds a list of templates under every name"):
        read_facts(source, {})
    (tmp_path / "ravel_city_attribute_to_prompts.json").write_text("{")
    with pytest.raises(InputError, match=r"ravel_city_attribute_to_prompts\.json"):
        read_facts(source, {})
    with pytest.raises(InputError, match="no such folder; give one with RAVEL's files"):
        read_facts("nowhere", {})
