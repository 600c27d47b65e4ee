"""The schema of activations.json: the shards of harvested activations, and the settings with which they were read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from ..schema import Checksum, Count, Element, Name, Positive, Schema

_AtOnce = Annotated[int, Field(ge=1, le=2**31 - 1)]


class ListedShard(Schema):
    """A file of activations. Older versions wrote no checksum."""

    file: Annotated[str, Field(pattern=r"^shard-[0-9]{5,9}\.safetensors$")]
    rows: Annotated[int, Field(ge=1, lt=2**40)]
    windows: Positive | None = None
    """Number of windows of the text up to the end of this shard. Older versions did not write it."""
    checksum: Checksum | None = None


class Manifest(Schema):
    """The contents of activations.json. Each default is what files without that key mean."""

    d_in: _AtOnce
    shards: Annotated[list[ListedShard], Field(min_length=1)]
    model: Name
    model_revision: Name | None = None
    model_fingerprint: Name | None = None
    site: Name
    data: Name
    tokens: Positive
    context: _AtOnce
    prepend_bos: bool = False
    held_out: Annotated[float, Field(gt=0, lt=1)]
    column: Name = ""
    split: Name = "train"
    chat: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    exclude_first: bool
    exclude_special: bool
    max_norm: Annotated[float, Field(ge=0)]
    sites: dict[Name, _AtOnce] = Field(default_factory=dict)
    """Width of every site by name, `site` first, if there are several sites."""
    element: Element = "auto"
    """How the numbers are stored."""
    version: Name = ""
    format_version: Literal[1, 2] = 1


def further_sites(manifest: Mapping[str, Any]) -> dict[str, int]:
    """The widths of all sites other than `site`, by name."""
    return {name: width for name, width in manifest.get("sites", {}).items() if name != manifest["site"]}


class HarvestRecord(Schema):
    """The contents of harvest.json: how long the harvest took."""

    activations: Count
    tokens: Count
    tokens_per_s: Annotated[float, Field(ge=0)]
    seconds: dict[Name, Annotated[float, Field(ge=0)]]
