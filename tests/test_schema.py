"""What a file must hold: one line that names place, key and expectation for whatever else it holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from saeforest.errors import InputError, command
from saeforest.schema import Count, Name, Schema, checked, listed, shown


class Inner(Schema):
    n: Count


class Outer(Schema):
    name: Name
    ratio: float
    kind: Literal["a", "b"] | float = "a"
    parts: list[Inner] = []  # noqa: RUF012
    pair: tuple[int, int] | None = None


@dataclass(frozen=True)
class Settings:
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes:
            raise InputError("sizes: expected some")


GOOD: dict[str, Any] = {"name": "x", "ratio": 1, "parts": [{"n": 3}], "pair": [1, 2]}


def test_what_fits() -> None:
    found = checked(Outer, {**GOOD, "more": "of a later version"}, "f.json")
    assert (found.ratio, found.parts[0].n, found.pair) == (1.0, 3, (1, 2))
    assert checked(Settings, {"sizes": [1, 2]}, "f.json") == Settings((1, 2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 3}, "key 'name': expected a valid string, got 3"),
        ({"name": "x" * 10_000}, "key 'name': String should have at most 4096 characters, got 'xxx"),
        ({"ratio": "1"}, "key 'ratio': expected a valid number, got '1'"),
        ({"ratio": True}, "key 'ratio': expected a valid number, got True"),
        ({"ratio": None}, "key 'ratio'"),
        ({"parts": [{"n": 3}, {"n": -1}]}, "key 'parts.1.n': expected greater than or equal to 0, got -1"),
        ({"parts": [{"n": 10**30}]}, "key 'parts.0.n'"),
        ({"parts": [{}]}, "key 'parts.0.n' is missing"),
        ({"parts": {"a": 1}}, "key 'parts'"),
        ({"parts": [[]]}, "key 'parts.0': expected an object, got []"),
        ({"kind": "c"}, "key 'kind': expected 'a' or 'b', got 'c'"),
        ({"pair": [1, 2.5]}, "key 'pair.1'"),
        ({"name": "\ud800"}, ""),
    ],
)
def test_what_does_not(change: dict[str, Any], said: str) -> None:
    data = {**GOOD, **change}
    with pytest.raises(InputError) as error:
        checked(Outer, data, "f.json", "make it anew")
    message = str(error.value)
    assert message.startswith("f.json: ")
    assert message.endswith("; make it anew")
    assert said in message
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("data", [None, 3, "x", [], [GOOD]])
def test_what_is_no_object(data: Any) -> None:
    with pytest.raises(InputError, match=r"f\.json: expected an object, got"):
        checked(Outer, data, "f.json")


def test_a_range_that_a_configuration_checks_names_the_file() -> None:
    with pytest.raises(InputError, match=r"f\.json: sizes: expected some; mend it"):
        checked(Settings, {"sizes": []}, "f.json", "mend it")


def test_values_and_names_are_cut() -> None:
    assert shown("x" * 100_000) == "'" + "x" * 79 + "… (100,002 characters)"
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a deeply nested list"
    assert listed([]) == "nothing"
    assert listed("cab") == "a, b, c"
    assert listed(f"{i:02}" for i in range(20)).endswith("10, 11 and 8 more")
    assert json.dumps(command("eval", "a b;c", "--sae", "x")) == "\"saeforest eval 'a b;c' --sae x\""
