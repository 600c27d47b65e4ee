"""What is measured. Workers import this in the environments of other libraries: the standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class Group(NamedTuple):
    """What cases must have in common to be compared."""

    task: str
    device: str
    d: int
    width: int
    k: int
    batch: int

    def __str__(self) -> str:
        return f"{self.task} on {self.device}, d {self.d}, width {self.width:,}, k {self.k}, batch {self.batch:,}"


@dataclass(frozen=True)
class Case:
    """One system of one library, at one size."""

    library: str
    system: str
    task: str
    device: str
    dtype: str
    d: int
    width: int
    k: int
    batch: int
    layer_sizes: tuple[int, ...]
    """Of a tree, and where the prefixes of a Matryoshka SAE end; a flat SAE has one layer."""
    k_per_layer: tuple[int, ...]
    """Of a tree; one number for the others."""

    @property
    def group(self) -> Group:
        return Group(self.task, self.device, self.d, self.width, self.k, self.batch)

    @property
    def name(self) -> str:
        return f"{self.library} {self.system} {self.dtype}"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Case:
        lists: dict[str, Any] = {key: tuple(data[key]) for key in ("layer_sizes", "k_per_layer")}
        return cls(**data | lists)
