"""What activations.json must hold: the shards of harvested activations, and how to read the same positions again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from ..schema import Checksum, Count, Name, Positive, Schema

_AtOnce = Annotated[int, Field(ge=1, le=2**31 - 1)]


class ListedShard(Schema):
    """A file of activations. Checksums are of later versions than files and rows."""

    file: Annotated[str, Field(pattern=r"^shard-[0-9]{5,9}\.safetensors$")]
    rows: Annotated[int, Field(ge=1, lt=2**40)]
    checksum: Checksum | None = None


class Manifest(Schema):
    """activations.json. What older versions did not write has the value that they meant."""

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
    """The width of every site, `site` first, where there are several."""
    version: Name = ""
    format_version: Literal[1] = 1


def further_sites(manifest: Mapping[str, Any]) -> dict[str, int]:
    """The widths of the sites beside `site`, by name."""
    return {name: width for name, width in manifest.get("sites", {}).items() if name != manifest["site"]}


class HarvestRecord(Schema):
    """harvest.json: what the reading took."""

    activations: Count
    tokens: Count
    tokens_per_s: Annotated[float, Field(ge=0)]
    seconds: dict[Name, Annotated[float, Field(ge=0)]]
