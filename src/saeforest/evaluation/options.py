"""Everything that can be set about measuring, in one object; and the readings that have a name (SPEC 11)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from ..activations import ActivationReader
from ..errors import UserError
from ..infer import InferConfig
from ..judges import JudgeConfig
from ..measures.absorption import AbsorptionConfig
from ..measures.autointerp import AutoInterpConfig
from ..measures.composition import CompositionConfig
from ..measures.dead_training import DeadTrainingConfig
from ..measures.geometry import GeometryConfig
from ..measures.hierarchy import HierarchyConfig
from ..measures.mcs import MCSConfig
from ..measures.pair_judge import PairJudgeConfig
from ..measures.pooled import LabelledTextConfig
from ..measures.probes import ProbeConfig
from ..measures.reconstruction_score import ReconstructionScoreConfig
from ..measures.sparse_probing import SparseProbingConfig
from ..measures.tpp import TPPConfig

Preset = Literal["recommended", "saebench_0.6", "ref_tree_sae"]


@dataclass(frozen=True)
class PositionOptions:
    """Which positions are measured; None: those the SAE was trained on."""

    exclude_first: bool | None = None
    """Leave out the first position of every window."""
    exclude_special: bool | None = None
    """Leave out special tokens."""
    max_norm: float | None = None
    """Leave out activations of a larger norm; 0: no limit."""

    def applied(self, reader: ActivationReader) -> ActivationReader:
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(reader, **given)


@dataclass(frozen=True)
class MeasureOptions:
    """How measures are taken. What a measure alone reads has the measure's name."""

    preset: Preset = "recommended"
    """Whose reading the settings below start from."""
    tokens: int = 100_000
    """Held-out tokens to measure on."""
    ce_tokens: int = 16_384
    """Of these, tokens for the cross-entropy, which takes whole passes of the language model: two, and one an SAE."""
    infer_tokens: int = 200_000
    """Training tokens to infer the forest of a flat SAE from."""
    positions: PositionOptions = field(default_factory=PositionOptions)
    infer: InferConfig = field(default_factory=InferConfig)
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    composition: CompositionConfig = field(default_factory=CompositionConfig)
    dead_training: DeadTrainingConfig = field(default_factory=DeadTrainingConfig)
    mcs: MCSConfig = field(default_factory=MCSConfig)
    reconstruction_score: ReconstructionScoreConfig = field(default_factory=ReconstructionScoreConfig)
    hierarchy: HierarchyConfig = field(default_factory=HierarchyConfig)
    absorption: AbsorptionConfig = field(default_factory=AbsorptionConfig)
    sparse_probing: SparseProbingConfig = field(default_factory=SparseProbingConfig)
    tpp: TPPConfig = field(default_factory=TPPConfig)
    autointerp: AutoInterpConfig = field(default_factory=AutoInterpConfig)
    pair_judge: PairJudgeConfig = field(default_factory=PairJudgeConfig)
    geometry: GeometryConfig = field(default_factory=GeometryConfig)

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("ce_tokens", 0), ("infer_tokens", 1)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"{name} = {value}: expected {least} or more")

    def config_of(self, name: str) -> Any:
        """The settings of a measure's own, asking the judge of all measures unless it has one; None: it has none."""
        config = getattr(self, name, None)
        if isinstance(config, AutoInterpConfig | PairJudgeConfig) and not config.judge.model:
            return replace(config, judge=self.judge)
        return config


#: Where others read a measure differently (SPEC 11).
PRESETS: dict[str, MeasureOptions] = {
    "recommended": MeasureOptions(),
    # Special tokens alone are left out (SPEC 1.1.1).
    "saebench_0.6": MeasureOptions(
        preset="saebench_0.6",
        positions=PositionOptions(exclude_first=False, exclude_special=True, max_norm=0),
        absorption=AbsorptionConfig.saebench(),
        autointerp=AutoInterpConfig(features=1000, random="unchecked"),
        sparse_probing=SparseProbingConfig(texts=LabelledTextConfig(train=4000, test=1000)),
        tpp=TPPConfig(texts=LabelledTextConfig(train=4000, test=1000), select_on="test"),
    ),
    # Nothing is left out (SPEC 0.3, trap 4).
    "ref_tree_sae": MeasureOptions(
        preset="ref_tree_sae",
        positions=PositionOptions(exclude_first=False, exclude_special=False, max_norm=0),
        probes=ProbeConfig(reduction="mean_all"),
        hierarchy=HierarchyConfig.reference(),
        absorption=AbsorptionConfig.reference(),
        autointerp=AutoInterpConfig(random="unchecked"),
    ),
}
