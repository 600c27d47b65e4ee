"""The index of a run: measurements of every feature for the explorer, taken once and kept in RUN/index."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from ...errors import InputError, command
from ...files import (
    CHECKSUMS,
    atomic_folder,
    listed_checksum,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from ...run_folder import RunFolder
from ...saes import SAE
from ...schema import Count, Name, Positive, checked, shown, without
from ...structure.forest import Forest
from ...text import Tokens
from .form import COLUMN, FORMS, INTERVALS, LOGIT_FORMS, NULL, PLACE, flaw

FORMAT_VERSION = 2
MANIFEST, TENSORS, TOKENS = "index.json", "index.safetensors", "tokens.safetensors"
#: The paper's criterion: parent and child are both among this many features nearest to the child's direction.
NEAREST = 5


ColumnName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


@dataclass(frozen=True)
class ColumnAbout:
    """What a column says, for pages and scripts. It is kept in the index: a page shows columns that it never knew."""

    name: ColumnName
    title: Name
    unit: Name
    description: Name
    """One sentence."""
    higher_is_more: bool
    """Whether higher values speak for the edge; if not, lower ones do."""
    mechanical: bool
    """Whether a gate brings high values about whatever the parent is, so that they say nothing of a gated SAE."""
    of_pair: bool = True
    """Whether it depends on the parent. Otherwise null pairs have the same values, and it has no places among them."""
    chosen: bool = False
    """Whether the parents of an inferred forest are chosen by it, or by what it follows from."""
    defined: Name = ""
    """Which edges have a value, as what follows "where"; empty for all. `{min_count}` and `{n_detected}` stand for
    the numbers in `About`."""


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
    gated: bool = True
    """Whether a child of the SAE can fire only where its parent does."""
    prepend_bos: bool = False
    """Whether the text was read with BOS at the start of every window."""
    n_pairs: Count = 0
    """Number of activations on which pairs of features were counted: all, unless that would take too much memory."""
    n_detected: Count = 0
    """Number of activations on which the detectors of children were run without the gate."""
    columns: tuple[ColumnAbout, ...] = ()
    """The columns of edges, in the order in which a page shows them."""


@dataclass(frozen=True, eq=False)
class Logits:
    """The tokens that a feature makes most and least likely, directly: its decoder row through the weight of the final
    norm and the unembedding. This is no effect on predictions: later layers may change it.

    up_id, up:     tokens with the largest logits, descending, and the logits.
    down_id, down: tokens with the smallest, ascending.
    """

    up_id: Int[Tensor, "d_sae 10"]
    up: Float[Tensor, "d_sae 10"]
    down_id: Int[Tensor, "d_sae 10"]
    down: Float[Tensor, "d_sae 10"]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Activations under parents with two or more children that fired, in their principal plane (Tree SAE, Figure 9).

    parent:    the parents, ascending; all else but `direction` is in this order.
    points:    activations on which the parent fires, projected onto their first two principal components; the origin is
               their mean. NaN where there are fewer.
    child:     which child fires most strongly there, as its place among `forest.children(parent)`; -1 if none does.
    row:       row of each activation in the text; -1 where there is none.
    explained: fraction of the variance of these activations along each component.
    direction: of each child, by its id: its encoder row of unit length in the plane of its parent; otherwise NaN.
    """

    parent: Int[Tensor, "g"]
    points: Float[Tensor, "g n 2"]
    child: Int[Tensor, "g n"]
    row: Int[Tensor, "g n"]
    explained: Float[Tensor, "g 2"]
    direction: Float[Tensor, "d_sae 2"]


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

    histogram:     number of its activations in 32 equal parts of the range from 0 to its maximum.
    sample_value, sample_row: activations drawn at random from five equal parts of that range, the highest first: 4
                   places for each part; padded with 0 and -1. At most one of a part comes from a passage.
    window_values: its activations around the rows of `top_row` and then `sample_row`, relative to its maximum, as whole
                   numbers up to 255 (0: silent, or outside the document, or not measured). Place 32 is the row itself.
    parents:       the features with children, ascending.
    window_child:  for each of `parents` and its windows, the child that fires most strongly at each place, by its place
                   among `forest.children(parent)`; -1 if none does.
    near_id, near_cos: the features whose decoder rows are nearest, and the cosines.
    over_id, over_p: candidate parents: the features g with the largest P(g | f) - P(g), and P(g | f).
    under_id, under_p: children by the data alone: features g outside its subtree, with at least `about.min_count`
                   firings, with the largest P(f | g) - P(f), and P(f | g).
    child_tokens, child_tokens_lift: the tokens that tell a feature from its parent (a root: from all text), most
                   telling first, and log2 of how much more frequent they are; padded with -1 and NaN.
    columns:       evidence for every edge, by name; NaN for roots and where undefined (see `columns.py`).
    column_places: the share of the matched null pairs that each edge exceeds, ties half. 0.5 is chance.
    null_parent, null_child: a sample of the null pairs. null_columns: the columns of these pairs.
    logits:        direct effects on logits; None if the language model was not there.
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
    histogram: Int[Tensor, "d_sae 32"]
    sample_row: Int[Tensor, "d_sae 20"]
    sample_value: Float[Tensor, "d_sae 20"]
    window_values: UInt8[Tensor, "d_sae n_windows 64"]
    parents: Int[Tensor, "p"]
    window_child: Int[Tensor, "p n_windows 64"]
    near_id: Int[Tensor, "d_sae 8"]
    near_cos: Float[Tensor, "d_sae 8"]
    over_id: Int[Tensor, "d_sae 8"]
    over_p: Float[Tensor, "d_sae 8"]
    under_id: Int[Tensor, "d_sae 8"]
    under_p: Float[Tensor, "d_sae 8"]
    child_tokens: Int[Tensor, "d_sae 5"]
    child_tokens_lift: Float[Tensor, "d_sae 5"]
    null_parent: Int[Tensor, "m"]
    null_child: Int[Tensor, "m"]
    columns: Mapping[str, Float[Tensor, "d_sae"]]
    column_places: Mapping[str, Float[Tensor, "d_sae"]]
    null_columns: Mapping[str, Float[Tensor, "m"]]
    geometry: Geometry
    logits: Logits | None = None

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

    def histogram_edges(self, feature: int) -> Float[Tensor, "33"]:
        """The edges of the bins of a feature's histogram. A bin holds its lower edge, the last one both."""
        return torch.linspace(0, 1, self.histogram.shape[1] + 1) * self.value_max[feature]

    def sample_edges(self, feature: int) -> Float[Tensor, "6"]:
        """The edges of the five parts of its range that a feature's samples come from, the highest first."""
        return torch.linspace(1, 0, INTERVALS + 1) * self.value_max[feature]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in the file, but for the text."""
        found: dict[str, Tensor] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                found[field.name] = value
            elif isinstance(value, Geometry | Logits):
                found |= {f"{field.name}.{part.name}": getattr(value, part.name) for part in fields(value)}
        for prefix, columns in (
            (COLUMN, self.columns),
            (PLACE, self.column_places),
            (NULL, self.null_columns),
        ):
            found |= {prefix + name: column for name, column in columns.items()}
        return found

    @classmethod
    def of_tensors(cls, about: About, tokens: Tokens, tensors: Mapping[str, Tensor]) -> Index:
        """The inverse of `tensors`. Raises KeyError if one is missing."""

        def part(kind: type[Any], name: str) -> Any:
            return kind(**{field.name: tensors[f"{name}.{field.name}"] for field in fields(kind)})

        def columns(prefix: str) -> dict[str, Tensor]:
            return {column.name: tensors[prefix + column.name] for column in about.columns}

        return cls(
            about,
            tokens,
            **{field.name: tensors[field.name] for field in fields(cls) if field.name in FORMS},
            columns=columns(COLUMN),
            column_places=columns(PLACE),
            null_columns=columns(NULL),
            geometry=part(Geometry, "geometry"),
            logits=part(Logits, "logits") if any(name in tensors for name in LOGIT_FORMS) else None,
        )

    def save(self, folder: Path) -> None:
        """Write the index to a folder, atomically."""
        with atomic_folder(folder) as temporary:
            checksums = {
                TOKENS: self.tokens.save(temporary / TOKENS),
                TENSORS: write_tensors(temporary / TENSORS, self.tensors()),
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
            raise InputError(f"{folder}: this index belongs to another SAE or forest; {again} again")
        columns = [column.name for column in about.columns]
        if wrong := flaw(tensors, columns, sae.d_sae, tokens.n_tokens, about.n_tokens):
            raise InputError(f"{folder / TENSORS}: damaged ({wrong}); {again} again")
        return cls.of_tensors(about, tokens, tensors)


def fingerprint(sae: SAE, forest: Forest) -> str:
    """A hash of decoder and forest, which tells whether an index belongs to them."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (sae.W_dec, forest.parent):
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def index_command(folder: Path) -> str:
    """The command that makes the index in `folder`: RUN/index, RUN/index/NAME for one of several SAEs, or DIR/index for
    an SAE without a run."""
    run = RunFolder.around(folder)
    if run is None:
        return command("index", "SAE", "--out", folder.parent)
    name = run.name_of(folder)
    return command("index", run, *(("--sae", name) if name else ()))


def read_about(folder: Path) -> tuple[About, dict[str, Any]]:
    """Read the manifest of an index: as `About`, and whole. Raises InputError if it is missing or damaged."""
    path = folder / MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: expected a JSON object")
    version = manifest.get("format_version")
    if version == 1:
        raise InputError(
            f"{path}: made by an older version of saeforest, with format_version 1; a new one has more"
        )
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: format_version {shown(version)}, expected {FORMAT_VERSION}")
    return checked(About, without(manifest, CHECKSUMS, "format_version"), path), manifest
