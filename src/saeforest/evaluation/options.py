"""All settings of measuring in one object, and named presets of them (docs/spec/records.md#readings)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from ..activations import ActivationReader
from ..errors import InputError
from ..infer import InferConfig
from ..judges import JudgeConfig
from ..measures.probes import ProbeConfig
from ..measures.spec import READINGS, Reading
from .registry import MEASURES


@dataclass(frozen=True)
class PositionOptions:
    """Which token positions are measured. By default (None), those that the SAE was trained on."""

    exclude_first: bool | None = None
    """Leave out the first position of every window. By default, as in training."""
    exclude_special: bool | None = None
    """Leave out special tokens. By default, as in training."""
    max_norm: float | None = None
    """Leave out activations with a norm above this; 0 for no limit. By default, as in training."""

    def applied(self, reader: ActivationReader) -> ActivationReader:
        """The reader with these options in place of its own, as far as they are given."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(reader, **given)


@dataclass(frozen=True)
class MeasureOptions:
    """How measures are taken.

    Raises InputError for a value out of range, for settings of an unknown measure, and for settings of the wrong type.
    """

    preset: Reading = "recommended"
    """Protocol that sets the defaults of all options below: our recommendation, that of SAEBench 0.6, or that of the
    Tree SAE authors' code."""
    tokens: int = 100_000
    """Number of held-out tokens to measure on."""
    ce_tokens: int = 16_384
    """How many of the held-out tokens to use for cross-entropy. It takes two forward passes of the language model over
    them, the second only from the site on, and one more from there for each SAE."""
    infer_tokens: int = 200_000
    """Number of training tokens from which to infer the forest of an SAE that has none."""
    nulls: Literal["yes", "no"] = "yes"
    """Measure values about a hierarchy also with its parents shuffled, and on the SAE before training. A measure of
    such values takes up to three times as long."""
    positions: PositionOptions = field(default_factory=PositionOptions)
    infer: InferConfig = field(default_factory=InferConfig)
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    measures: Mapping[str, Any] = field(default_factory=dict)
    """Settings of individual measures, by name. The other measures have the settings of the preset."""

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("ce_tokens", 0), ("infer_tokens", 1)):
            if (value := getattr(self, name)) < least:
                raise InputError(f"{name} = {value}: expected {least} or more")
        configurable = {name: spec.config for name, spec in MEASURES.items() if spec.config is not None}
        for name, config in self.measures.items():
            if name not in configurable:
                raise InputError(f"settings of measure '{name}': expected any of {', '.join(configurable)}")
            if not isinstance(config, configurable[name]):
                raise InputError(
                    f"settings of measure '{name}': expected a {configurable[name].__name__}, not {config!r}"
                )

    def of_measure(self, name: str) -> Any:
        """The settings of a measure; None if it has none."""
        spec = MEASURES[name]
        if spec.config is None:
            return None
        if name in self.measures:
            return self.measures[name]
        return spec.readings[self.preset] if self.preset in spec.readings else spec.config()

    def config_of(self, name: str) -> Any:
        """Like `of_measure`, but a measure without a judge of its own gets the judge of these options."""
        config = self.of_measure(name)
        if "judge" in MEASURES[name].needs and not config.judge.model:
            return replace(config, judge=self.judge)
        return config


#: How others take measures (docs/spec/records.md#readings). A measure declares its own settings for each (`readings`).
MEASURE_PRESETS: dict[Reading, MeasureOptions] = {
    "recommended": MeasureOptions(),
    # Only special tokens are left out (docs/spec/activations.md#sinks).
    "saebench_0.6": MeasureOptions(
        preset="saebench_0.6",
        positions=PositionOptions(exclude_first=False, exclude_special=True, max_norm=0),
    ),
    # Nothing is left out (docs/spec/activations.md#sinks).
    "ref_tree_sae": MeasureOptions(
        preset="ref_tree_sae",
        positions=PositionOptions(exclude_first=False, exclude_special=False, max_norm=0),
        probes=ProbeConfig(reduction="mean_all"),
    ),
}
assert MEASURE_PRESETS.keys() == set(READINGS)
