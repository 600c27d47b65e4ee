"""What the workers of a harvest share: which windows are in which shard, and what each has finished.

Workers never talk to each other. The plan is a file that says everything on which the activations depend. Shards end at
fixed windows of the text, so that a worker knows the place of each of its shards, and every shard that is finished has
an entry, a small file that is written after it. A store is complete when its manifest is there, which lists all shards.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..errors import InputError
from ..files import checksum_of_data
from ..schema import Checksum, Count, Name, checked
from ..text import Tokens
from .folder import Folder

#: Every worker has the same plan, whose name says that the store is unfinished.
PLAN = "unfinished.json"
PLAN_VERSION = 2
_ENTRY = re.compile(r"(shard|open)-\d{5,9}\.json")
_OPEN = re.compile(r"open-\d{5,9}\.safetensors")


class Plan(BaseModel):
    """Everything on which the activations and their shards depend."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format_version: Literal[2] = PLAN_VERSION
    about: dict[str, Any]
    """The description that the manifest will contain."""
    settings: dict[str, Any]
    """The other settings that affect the activations, or from which the description follows."""
    text: Name
    """A digest of the tokens and of their documents."""
    windows: Annotated[int, Field(ge=1, lt=2**40)]
    """Number of windows in the text."""
    shard_windows: Annotated[int, Field(ge=1, lt=2**40)]
    """Number of windows in a shard; the last shard may have fewer."""

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return -(-self.windows // self.shard_windows)

    def span(self, index: int) -> range:
        """The windows of a shard."""
        return range(index * self.shard_windows, min((index + 1) * self.shard_windows, self.windows))

    def flat(self) -> dict[str, Any]:
        """Everything in it, by name."""
        return self.model_dump(exclude={"about", "settings"}) | self.settings | self.about

    def digest(self) -> str:
        """A digest of all of the plan, which every entry names."""
        return checksum_of_data(self.model_dump())


class Entry(BaseModel):
    """A shard that is finished, or the beginning of one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    file: Annotated[str, Field(pattern=r"^(shard|open)-\d{5,9}\.safetensors$")]
    rows: Count
    """Number of activations. A shard without any has no file."""
    windows: tuple[Count, Count]
    """The first window, and the one behind the last."""
    file_checksum: Checksum
    bytes: Count
    plan: Checksum
    seconds: dict[Name, Annotated[float, Field(ge=0)]]
    """How long it took: see `Harvest`."""


@dataclass(frozen=True)
class Worker:
    """One of several processes that harvest together. Worker `index` reads the shards whose number is `index` modulo
    `of`."""

    index: int = 0
    of: int = 1

    def shards(self, plan: Plan) -> range:
        """The numbers of its shards."""
        return range(self.index, plan.n_shards, self.of)

    def __str__(self) -> str:
        return f"worker {self.index} of {self.of}"


ALONE = Worker()


def shard_file(index: int) -> str:
    """The name of a shard."""
    return f"shard-{index:05}.safetensors"


def open_file(index: int) -> str:
    """The name of the beginning of a shard that is not finished."""
    return f"open-{index:05}.safetensors"


def entry_of(file: str) -> str:
    """The name of the entry of a shard."""
    return file.replace(".safetensors", ".json")


def windows_of_a_shard(rows: int, per_window: int, batch_size: int) -> int:
    """The number of windows that have at least `rows` activations if none is left out, in whole batches.

    Whole batches, because the last bits of an activation may depend on which windows are read together.
    """
    return math.ceil(rows / (max(per_window, 1) * batch_size)) * batch_size


def digest_of_text(tokens: Tokens) -> str:
    """A digest of token ids, documents and their names."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (tokens.ids, tokens.document_starts):
        digest.update(part.numpy().data)
    digest.update("\0".join(tokens.names).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def read_plan(folder: Folder) -> Plan | None:
    """The plan of an unfinished harvest; None if there is none. Raises InputError if it is damaged."""
    if not folder.has(PLAN):
        return None
    remedy = f"delete {folder} and start the harvest again"
    try:
        data = folder.read_json(PLAN)
    except InputError as error:
        if str(error).endswith("no such file"):  # another worker has just finished the store
            return None
        raise
    version = data.get("format_version") if isinstance(data, dict) else None
    if version == 1:
        raise InputError(f"{folder.path(PLAN)}: an unfinished harvest of an older version; {remedy}")
    return checked(Plan, data, folder.path(PLAN), remedy)


def read_entry(folder: Folder, name: str) -> Entry:
    """An entry. Raises InputError if it is missing or damaged."""
    return checked(Entry, folder.read_json(name), folder.path(name), "delete it")


def is_unfinished(name: str) -> bool:
    """Whether a file is one that only unfinished stores have."""
    return name == PLAN or bool(_ENTRY.fullmatch(name) or _OPEN.fullmatch(name))


def remove_unfinished(folder: Folder, names: Iterable[str]) -> None:
    """Remove what only unfinished stores have, the plan last."""
    for name in sorted(filter(is_unfinished, names), key=lambda name: name == PLAN):
        folder.remove(name)


def check_agreed(folder: Folder, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise InputError if an unfinished harvest has other settings than this worker."""
    for key in sorted(there.keys() | wanted.keys()):
        if there.get(key) != wanted.get(key):
            raise InputError(
                f"{folder}: contains an unfinished harvest of other activations ({key}: {there.get(key)!r} there, "
                f"{wanted.get(key)!r} now); finish it with its own settings, delete it, or choose another folder"
            )
