"""Settings that the documentation names exist: `sae.aux.k`, `--hierarchy.min-count`, also without their first words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from docs_cases import ROOT, sources
from saeforest.config import TrainConfig
from saeforest.evaluation import MEASURES
from saeforest.evaluation.options import MeasureOptions
from saeforest.lm import LanguageModel
from saeforest.saes import SYSTEMS, TreeConfig, TreeSAE

CODE = re.compile(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`")
OPTION = re.compile(r"(?<![\w-])--([a-z-]+(?:\.[a-z0-9-]+)+)")
OF_ONE_SAE = re.compile(r"^saes\.[^.]+\.(?=.)")
# Sections that are also names of objects in Python: `lm.activations` is a method, `sae.forest` an attribute.
OBJECTS = {"lm": LanguageModel, "sae": TreeSAE(TreeConfig((2, 3), (1, 1)), d_in=4)}
# What looks like a setting and is the name of a file.
FILE = re.compile(r"\.(jsonl?|md|py|ya?ml|txt|[ct]sv|html|png|svg|gguf|safetensors)$")


def settings_of(config: Any) -> Iterator[tuple[str, ...]]:
    """The paths of a configuration's settings, groups of settings included."""
    for name, hint in get_type_hints(config).items():
        if name in {f.name for f in fields(config)}:
            yield (name,)
            for inner in (hint, *get_args(hint)):
                if is_dataclass(inner):
                    yield from ((name, *path) for path in settings_of(inner))


def known() -> set[tuple[str, ...]]:
    """The paths of all settings of training and measuring, whole and without their first words."""
    paths = {*settings_of(TrainConfig), *settings_of(MeasureOptions)}
    paths |= {("sae", *path) for sae in SYSTEMS.values() for path in settings_of(sae.config_class)}
    paths |= {(m, *path) for m, spec in MEASURES.items() if spec.config for path in settings_of(spec.config)}
    return {path[first:] for path in paths for first in range(len(path))}


def unknown(text: str, paths: set[tuple[str, ...]]) -> list[str]:
    """The settings that a text names and that do not exist. What begins with no known word is none."""
    named = [tuple(name.split(".")) for name in CODE.findall(text)]
    named = [n for n in named if not (n[0] in OBJECTS and hasattr(OBJECTS[n[0]], n[1]))]
    options = (OF_ONE_SAE.sub("", name) for name in OPTION.findall(text))
    named += [tuple(name.replace("-", "_").split(".")) for name in options]
    begins = {path[0] for path in paths if len(path) > 1}
    return [".".join(n) for n in named if n[0] in begins and n not in paths and not FILE.search(".".join(n))]


def test_settings_named_in_the_documentation_exist() -> None:
    paths = known()
    pages = [(path, text) for path, text in sources(ROOT) if path.suffix == ".md" and "src" not in path.parts]
    assert [
        f"{path.relative_to(ROOT)}: {name}" for path, text in pages for name in unknown(text, paths)
    ] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "`sae.aux.k` `aux.k=256` `allocation.growth=double` --hierarchy.min-count 100 `probes.reduction`",
            [],
        ),
        ("`sae.aux.kk`", ["sae.aux.kk"]),
        ("`allocation.groth=double`", ["allocation.groth"]),
        ("`saeforest eval --hierarchy.least-count 3`", ["hierarchy.least_count"]),
        ("`judge.jsonl` `code.values` `torch.float32`", []),
        ("`--saes.demo-topk.optim.lr 1` `--saes.demo.optim.ls 1`", ["optim.ls"]),
    ],
)
def test_a_setting_that_does_not_exist_is_named(text: str, expected: list[str]) -> None:
    assert unknown(text, known()) == expected
