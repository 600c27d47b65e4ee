"""The arguments of `saeforest eval`."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass, replace
from typing import Annotated, Any

import tyro

from ..evaluation.options import MeasureOptions
from ..evaluation.registry import MEASURES, SETS
from .shared import Device, Json, Run


@dataclass(frozen=True)
class _Arguments:
    run: Run
    common: Annotated[MeasureOptions, tyro.conf.arg(name="")] = field(default_factory=MeasureOptions)
    measures: Annotated[
        str,
        tyro.conf.arg(
            metavar="NAMES",
            help=f"Measures to take, separated by commas: {', '.join(MEASURES)}; or a set of them: {', '.join(SETS)}.",
        ),
    ] = "fast"
    sae: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Which SAE to measure. Default: all of the run."""
    device: Device = None
    again: tyro.conf.FlagCreatePairsOff[bool] = False
    """Repeat measures that have a result with the same settings."""
    json: Json = False

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
