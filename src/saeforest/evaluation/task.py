"""What is measured: an SAE, the names of measures, and what they are taken with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..activations import ActivationReader
from ..errors import InputError
from ..measures.needs import Need
from ..measures.spec import Streaming, Study
from ..saes import SAE
from ..session import check_bos
from ..structure.forest import Forest
from ..text import Tokens
from .registry import MEASURES

# To supply the need, the frame must have these too.
_IMPLIED: dict[Need, tuple[Need, ...]] = {"probes": ("activations", "firings")}


@dataclass(frozen=True)
class Source:
    """Where text and SAE come from, for the records."""

    data: str
    """As given to `tokenize`."""
    split: str
    seed: int
    """Of the run: its text, its weights."""
    sae: str
    """Path or name."""
    forest: str = "its own"
    """Where the forest comes from."""


class ReadText(NamedTuple):
    """The measured text, and what reads its activations."""

    reader: ActivationReader
    tokens: Tokens


@dataclass(frozen=True, eq=False)
class Task:
    """The measures to take of one SAE.

    forest:   its own or, for a flat SAE, one inferred from text that is not measured.
    text:     what is measured; None where activations are measured that come from no text (`evaluate_rows`).
    settings: of every record: what was measured, on what.
    folder:   where a judge's answers are kept; None: nowhere.
    log:      the folder of its training's log.jsonl; None: unknown.
    """

    sae: SAE
    names: Sequence[str]
    forest: Forest
    text: ReadText | None
    settings: Mapping[str, Any]
    folder: Path | None = None
    log: Path | None = None

    @property
    def reader(self) -> ActivationReader:
        """Reads the SAE's site, on which it was trained."""
        return self._text.reader

    @property
    def tokens(self) -> Tokens:
        """The measured text."""
        return self._text.tokens

    @property
    def _text(self) -> ReadText:
        if self.text is None:
            raise LookupError("a measure asks for text, but activations without one are measured")
        return self.text

    @property
    def streaming(self) -> list[Streaming]:
        return [spec for name in self.names if isinstance(spec := MEASURES[name], Streaming)]

    @property
    def studies(self) -> list[Study]:
        return [spec for name in self.names if isinstance(spec := MEASURES[name], Study)]

    def needs(self, *needs: Need) -> bool:
        """Whether one of the measures needs any of these."""
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
) -> Task:
    """`forest` stands in for the SAE's own.

    Raises InputError where the text begins with BOS and the SAE was trained without, or the other way round, and for a
    measure that says nothing of a transcoder.
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
        "batch": f"{reader.batch_size} windows",
        "positions": {
            "exclude_first": reader.exclude_first,
            "exclude_special": reader.exclude_special,
            "max_norm": reader.max_norm,
        },
        **about_sae(sae),
    }
    own = sae.forest if forest is None else forest
    return Task(sae, tuple(names), own, ReadText(reader, tokens), settings, folder, log)


def check_transcoder(sae: SAE, names: Sequence[str]) -> None:
    """Raises InputError where the SAE is a transcoder, and a measure says nothing of those."""
    if sae.is_transcoder:
        for name in names:
            if not MEASURES[name].transcoders:
                raise InputError(f"measure '{name}': means nothing for a transcoder; leave it out")


def about_sae(sae: SAE) -> dict[str, Any]:
    """What every record says of how the SAE was measured, whatever it was measured on."""
    return {
        "normalize_activations": sae.config.normalize_activations,
        "activation_threshold": sae.config.activation_threshold,
        "reading": "recommended",
        "version": __version__,
    }
