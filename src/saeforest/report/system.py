"""Systems as the report distinguishes them: the SAE classes, and the papers' ablations of them."""

from __future__ import annotations

from functools import cache
from operator import attrgetter
from typing import NamedTuple

from ..config import TrainConfig
from ..saes import SAE, SYSTEMS
from .papers import Ablation, ablations


class System(NamedTuple):
    """A kind of SAE with a number of layers; different numbers are different systems, as in the papers' figures.

    kind: name of a system or of an ablation.
    """

    kind: str
    layers: int

    @property
    def ablation(self) -> Ablation | None:
        """The ablation that it is; None for a whole system."""
        return ablations().get(self.kind)

    @property
    def sae_class(self) -> type[SAE]:
        """The class of its SAEs."""
        return SYSTEMS[whole(self.kind)]

    @property
    def title(self) -> str:
        """Name in the report."""
        name = kind_title(self.kind)
        return name if self.layers == 1 else f"{name}, {self.layers} layers"

    @property
    def color(self) -> str:
        """Color in all figures."""
        if self.ablation:
            return self.ablation.color
        two_layers = self.sae_class.color_of_two_layers if self.layers == 2 else ""
        return two_layers or self.sae_class.color

    @property
    def marker(self) -> str:
        """Marker in all figures."""
        return self.ablation.marker if self.ablation else self.sae_class.marker

    @property
    def rank(self) -> tuple[int, int]:
        """Its position in the order of systems."""
        return _kinds().index(self.kind), self.layers

    @property
    def learns_forest(self) -> bool:
        """Whether its SAEs learn a forest."""
        return self.sae_class.has_forest

    @property
    def gated(self) -> bool:
        """Whether a child fires only where its parent does."""
        return self.sae_class.gated


def whole(kind: str) -> str:
    """The whole system of a kind: the kind itself, or the system that it is an ablation of."""
    ablation = ablations().get(kind)
    return ablation.system if ablation else kind


def kind_title(kind: str) -> str:
    """The name of a system or ablation in the report."""
    ablation = ablations().get(kind)
    return ablation.title if ablation else SYSTEMS[kind].title


def kind_of(config: TrainConfig) -> str:
    """The system or ablation that a configuration trains."""
    sae = config.sae
    for kind, ablation in ablations().items():
        if ablation.system == sae.architecture and any(
            all(attrgetter(key)(sae) == value for key, value in settings.items())
            for settings in ablation.settings
        ):
            return kind
    return sae.architecture


@cache
def _kinds() -> list[str]:
    """All kinds in order: each system, then its ablations."""
    return [
        kind
        for name in SYSTEMS
        for kind in (name, *(k for k, ablation in ablations().items() if ablation.system == name))
    ]
