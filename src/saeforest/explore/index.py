"""The index of a run: measurements of every feature for the explorer, taken once and kept in RUN/index."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from ..errors import InputError, command
from ..files import (
    CHECKSUMS,
    atomic_folder,
    listed_checksum,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from ..run_folder import RunFolder
from ..saes import SAE
from ..schema import FLOATS, INTEGERS, Count, Name, Positive, checked, shown, without
from ..structure.forest import Forest
from ..text import Tokens

FORMAT_VERSION = 1
MANIFEST, TENSORS, TOKENS = "index.json", "index.safetensors", "tokens.safetensors"
#: The paper's criterion: parent and child are both among this many features nearest to the child's direction.
NEAREST = 5


@dataclass(frozen=True)
class About:
    """What an index was made from."""

    model: Name
    site: Name
    n_tokens: Positive
    """Number of measured activations."""
    min_count: Count
    """Minimum number of tokens that a feature must fire on to have a direction."""
    contexts_from: Literal["document", "window"]
    """A feature's strongest activations come from different documents or different windows."""
    ridge: Annotated[float, Field(ge=0)]
    """Regularization of the LDA directions, as a fraction of the mean variance."""
    sae: Name
    """`fingerprint` of the SAE and its forest."""
    rows: Literal["decoder", "encoder"] = "decoder"
    """Which vectors of features are compared with directions; the encoder for a transcoder, whose decoder writes at
    another site."""
    prepend_bos: bool = False
    """Whether the text was read with BOS at the start of every window."""


@dataclass(frozen=True, eq=False)
class Index:
    """Measurements of every feature over `about.n_tokens` tokens. An edge is identified by its child.

    tokens:        the text; rows index its flattened token ids.
    n_fired:       number of tokens on which the feature fires.
    n_with_parent: number of tokens on which it and its parent fire; 0 for roots.
    value_sum, value_max: sum and maximum of its activations.
    top_value, top_row: its strongest activations, descending, and their rows; padded with 0 and -1.
    cos_child, cos_parent: cosine between the feature's LDA direction and its own and its parent's decoder row; NaN if
                   undefined (it fired less than `about.min_count` times, or is a root without a parent).
    rank_child, rank_parent: 1 + number of decoder rows with a larger cosine; 0 if undefined.
    """

    about: About
    tokens: Tokens
    n_fired: Int[Tensor, "d_sae"]
    n_with_parent: Int[Tensor, "d_sae"]
    value_sum: Float[Tensor, "d_sae"]
    value_max: Float[Tensor, "d_sae"]
    top_value: Float[Tensor, "d_sae n_contexts"]
    top_row: Int[Tensor, "d_sae n_contexts"]
    cos_child: Float[Tensor, "d_sae"]
    cos_parent: Float[Tensor, "d_sae"]
    rank_child: Int[Tensor, "d_sae"]
    rank_parent: Int[Tensor, "d_sae"]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return len(self.n_fired)

    @cached_property
    def density(self) -> Float[Tensor, "d_sae"]:
        """Fraction of the tokens on which each feature fires."""
        return self.n_fired.double() / self.about.n_tokens

    @cached_property
    def s_res(self) -> Float[Tensor, "d_sae"]:
        """The reconstruction score of each feature with its parent (Eq. 5), approximate: see `directions`."""
        return torch.minimum(self.cos_child, self.cos_parent)

    @cached_property
    def measured(self) -> Bool[Tensor, "d_sae"]:
        """Which edges have a reconstruction score."""
        return self.rank_parent > 0

    @cached_property
    def passes(self) -> Bool[Tensor, "d_sae"]:
        """Which edges meet the paper's criterion, approximately: see `directions`."""
        return self.measured & (self.rank_child <= NEAREST) & (self.rank_parent <= NEAREST)

    def save(self, folder: Path) -> None:
        """Write the index to a folder, atomically."""
        with atomic_folder(folder) as temporary:
            checksums = {
                TOKENS: self.tokens.save(temporary / TOKENS),
                TENSORS: write_tensors(temporary / TENSORS, {name: getattr(self, name) for name in _TENSORS}),
            }
            about = {"format_version": FORMAT_VERSION, **asdict(self.about), CHECKSUMS: checksums}
            write_json(temporary / MANIFEST, about)

    @classmethod
    def load(cls, folder: Path, sae: SAE, forest: Forest) -> Index:
        """Load an index written by `save`. Raises InputError if it is missing, damaged, or of another SAE or forest."""
        again = f"run `{index_command(folder)}`"
        if not (folder / MANIFEST).is_file():
            raise InputError(f"{folder}: no index yet; {again}")
        try:
            about, manifest = read_about(folder)
            tokens = Tokens.load(folder / TOKENS, listed_checksum(manifest, TOKENS))
            tensors = read_tensors(folder / TENSORS, listed_checksum(manifest, TENSORS))
        except InputError as error:
            raise InputError(f"{folder}: this index can't be read ({error}); {again} again") from None
        if about.sae != fingerprint(sae, forest):
            raise InputError(
                f"{folder}: this index belongs to another SAE or forest than the run's; {again} again"
            )
        if flaw := _flaw(tensors, sae.d_sae, tokens.n_tokens, about.n_tokens):
            raise InputError(f"{folder / TENSORS}: damaged ({flaw}); {again} again")
        return cls(about, tokens, **{name: tensors[name] for name in _TENSORS})


_TENSORS = [field.name for field in fields(Index) if field.name not in ("about", "tokens")]
_FLOATS = {"value_sum", "value_max", "top_value", "cos_child", "cos_parent"}


def fingerprint(sae: SAE, forest: Forest) -> str:
    """A hash of decoder and forest, which tells whether an index belongs to them."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (sae.W_dec, forest.parent):
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def index_command(folder: Path) -> str:
    """The command that makes the index in `folder`: RUN/index, or RUN/index/NAME for one of several SAEs."""
    run = RunFolder.around(folder)
    name = None if run is None else run.name_of(folder)
    return command("index", run or folder.parent, *(("--sae", name) if name else ()))


def read_about(folder: Path) -> tuple[About, dict[str, Any]]:
    """Read the manifest of an index: as `About`, and whole. Raises InputError if it is missing or damaged."""
    path = folder / MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: expected a JSON object")
    if (version := manifest.get("format_version")) != FORMAT_VERSION:
        raise InputError(f"{path}: format_version {shown(version)}, expected {FORMAT_VERSION}")
    return checked(About, without(manifest, CHECKSUMS, "format_version"), path), manifest


def _flaw(tensors: dict[str, Tensor], d_sae: int, n_rows: int, n_tokens: int) -> str | None:
    """What is wrong with the tensors of an index; None if they are valid."""
    for name in _TENSORS:
        if name not in tensors:
            return f"no tensor '{name}'"
        tensor = tensors[name]
        if tensor.dtype not in (FLOATS if name in _FLOATS else INTEGERS):
            return f"'{name}' has dtype {tensor.dtype}"
        if tensor.ndim != 1 + name.startswith("top") or len(tensor) != d_sae:
            return f"'{name}' has shape {list(tensor.shape)}"
    if tensors["top_row"].shape != tensors["top_value"].shape:
        return "'top_row' and 'top_value' differ in shape"
    if tensors["top_row"].numel() and not -1 <= tensors["top_row"].min() <= tensors["top_row"].max() < n_rows:
        return "'top_row' points outside the text"
    if n_tokens > n_rows:
        return f"{n_tokens:,} tokens measured in a text of only {n_rows:,}"
    for name in ("n_fired", "n_with_parent", "rank_child", "rank_parent"):
        most = n_tokens if name.startswith("n_") else d_sae
        if not bool(((tensors[name] >= 0) & (tensors[name] <= most)).all()):
            return f"'{name}' has numbers outside 0 to {most:,}"
    for name in sorted(_FLOATS):
        numbers = tensors[name]
        if bool(numbers.isinf().any()) or (not name.startswith("cos_") and bool(numbers.isnan().any())):
            return f"'{name}' has NaN or infinite values"
    return None
