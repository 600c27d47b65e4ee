"""The arguments of `saeforest eval`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..evaluation.options import MeasureOptions


def eval_arguments(preset: MeasureOptions) -> type[Any]:
    """The class of the arguments, with the defaults of a preset."""

    @dataclass(frozen=True)
    class EvalArguments:
        run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
        """A run's folder."""
        options: Annotated[MeasureOptions, tyro.conf.arg(name="")] = field(default_factory=lambda: preset)
        measures: str = "fast"
        """A set (fast, paper, saebench) or names, separated by commas."""
        sae: str | None = None
        """Which SAE, of a run that trained several; all of them by default."""
        device: str | None = None
        """Of language model and SAE; by default the one the run was trained on."""
        again: tyro.conf.FlagCreatePairsOff[bool] = False
        """Take measures anew that were taken before with the same settings."""

    return EvalArguments
