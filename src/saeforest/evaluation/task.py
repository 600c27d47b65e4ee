"""What is measured: an SAE, the names of measures, the reader and the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..activations import ActivationReader
from ..errors import InputError
from ..measures.bootstrap import same_units
from ..measures.needs import Need
from ..measures.spec import Streaming, Study
from ..saes import SAE
from ..session import check_bos
from ..structure.forest import Forest
from ..text import Tokens
from .nulls import Nulls, Start, start_of
from .registry import MEASURES

# Needs that the evaluation must supply in order to supply another.
_IMPLIED: dict[Need, tuple[Need, ...]] = {"probes": ("activations", "firings")}


@dataclass(frozen=True)
class Source:
    """Where text, SAE and forest come from, for the records."""

    data: str
    """Text source, as given to `tokenize`."""
    split: str
    """Split of the text source: "train" or "held_out"."""
    seed: int
    """Random seed of the run, for its text and its weights."""
    sae: str
    """Path or name of the SAE."""
    forest: str = "its own"
    """Short description of where the forest comes from."""


class ReadText(NamedTuple):
    """The text to measure on, and the reader of its activations."""

    reader: ActivationReader
    tokens: Tokens


@dataclass(frozen=True, eq=False)
class Task:
    """The measures to take of one SAE.

    names:    names of the measures.
    forest:   the SAE's own forest or, for a flat SAE, one inferred from text that is not measured.
    text:     the text to measure on, and its reader; None for activations that come from no text (`evaluate_rows`).
    settings: settings that go into every record: what was measured, on what.
    folder:   folder where a judge's answers are kept; None to keep none.
    log:      folder with the training's log.jsonl; None if unknown.
    start:    how the training of the SAE started, or why that is not known.
    nulls:    the nulls on which values about the hierarchy are measured too; None for none.
    is_null:  whether this is the task of such a null.
    """

    sae: SAE
    names: Sequence[str]
    forest: Forest
    text: ReadText | None
    settings: Mapping[str, Any]
    folder: Path | None = None
    log: Path | None = None
    start: Start | str = "it is not known how its training started"
    nulls: Nulls | None = None
    is_null: bool = False

    @property
    def reader(self) -> ActivationReader:
        """The reader of the site on which the SAE was trained."""
        return self._text.reader

    @property
    def tokens(self) -> Tokens:
        """The text to measure on."""
        return self._text.tokens

    @property
    def _text(self) -> ReadText:
        if self.text is None:
            raise LookupError("a measure needs text, but the measured activations come without text")
        return self.text

    @property
    def streaming(self) -> list[Streaming]:
        """The measures that are updated batch by batch during the pass over the text."""
        return [spec for name in self.names if isinstance(spec := MEASURES[name], Streaming)]

    @property
    def studies(self) -> list[Study]:
        """The measures that run after the pass over the text."""
        return [spec for name in self.names if isinstance(spec := MEASURES[name], Study)]

    @property
    def with_nulls(self) -> tuple[str, ...]:
        """The names of the measures with values that have nulls."""
        return tuple(name for name in self.names if MEASURES[name].nulls)

    def needs(self, *needs: Need) -> bool:
        """Whether any of the measures needs any of these inputs."""
        declared: set[Need] = set().union(*(MEASURES[name].needs for name in self.names))
        declared |= {implied for need in declared for implied in _IMPLIED.get(need, ())}
        return not declared.isdisjoint(needs)


def make_task(
    sae: SAE,
    names: Sequence[str],
    reader: ActivationReader,
    tokens: Tokens,
    source: Source,
    *,
    forest: Forest | None = None,
    folder: Path | None = None,
    log: Path | None = None,
    start: Start | None = None,
) -> Task:
    """Make the task of measuring an SAE. `forest` is measured instead of the SAE's own.

    start: how its training started; None for what its metadata say.

    Raises InputError if the text begins with BOS but the SAE was trained without it, or the other way round, and for a
    measure that is not defined for a transcoder if the SAE is one.
    """
    check_transcoder(sae, names)
    check_bos(sae, prepend_bos=tokens.prepend_bos)
    settings = {
        **asdict(source),
        "model": reader.lm.identity.name,
        "model_revision": reader.lm.identity.revision,
        "model_fingerprint": reader.lm.identity.fingerprint,
        "site": reader.site.name,
        **({"target": reader.written.name} if reader.others else {}),
        "lm_dtype": str(reader.lm.dtype).removeprefix("torch."),
        "sae_dtype": str(sae.encoder.dtype).removeprefix("torch."),
        "context": tokens.context,
        "prepend_bos": tokens.prepend_bos,
        "tokens_read": tokens.n_tokens,
        "text": same_units("tokens", tokens.ids),
        "batch": f"{reader.batch_size} windows",
        "positions": {
            "exclude_first": reader.exclude_first,
            "exclude_special": reader.exclude_special,
            "max_norm": reader.max_norm,
        },
        **about_sae(sae),
    }
    own = sae.forest if forest is None else forest
    return Task(
        sae, tuple(names), own, ReadText(reader, tokens), settings, folder, log, start or start_of(sae)
    )


def check_transcoder(sae: SAE, names: Sequence[str]) -> None:
    """Raises InputError if the SAE is a transcoder and a measure is not defined for those."""
    if sae.is_transcoder:
        for name in names:
            if not MEASURES[name].transcoders:
                raise InputError(f"measure '{name}': not defined for a transcoder; leave it out")


def about_sae(sae: SAE) -> dict[str, Any]:
    """The settings of an SAE that go into every record, whatever it was measured on."""
    return {
        "normalize_activations": sae.config.normalize_activations,
        "activation_threshold": sae.config.activation_threshold,
        "reading": "recommended",
        "version": __version__,
    }
