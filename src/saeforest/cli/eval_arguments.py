"""The arguments of `saeforest eval`."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..evaluation.options import MeasureOptions
from ..evaluation.registry import MEASURES


@dataclass(frozen=True)
class _Arguments:
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run's folder."""
    common: Annotated[MeasureOptions, tyro.conf.arg(name="")] = field(default_factory=MeasureOptions)
    measures: str = "fast"
    """A set (fast, paper, saebench) or names, separated by commas."""
    sae: str | None = None
    """Which SAE, of a run that trained several; all of them by default."""
    device: str | None = None
    """Of language model and SAE; by default the one the run was trained on."""
    again: tyro.conf.FlagCreatePairsOff[bool] = False
    """Take measures anew that were taken before with the same settings."""

    @property
    def options(self) -> MeasureOptions:
        """All settings of measuring, those of single measures among them."""
        return replace(self.common, measures={name: getattr(self, name) for name in _configurable()})


def _configurable() -> dict[str, type[Any]]:
    return {name: spec.config for name, spec in MEASURES.items() if spec.config is not None}


def eval_arguments(preset: MeasureOptions) -> type[_Arguments]:
    """The class of the arguments, with the defaults of a preset: beside the common ones a group for each measure."""
    groups = [
        (name, config, field(default=preset.of_measure(name))) for name, config in _configurable().items()
    ]
    common = ("common", Annotated[MeasureOptions, tyro.conf.arg(name="")], field(default=preset))
    return make_dataclass("EvalArguments", [common, *groups], bases=(_Arguments,), frozen=True)
