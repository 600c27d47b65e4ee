"""What a measure is given: an SAE, and what the measure declared that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from ..hf_types import PreTrainedTokenizerBase
from ..judges import Judge
from ..saes import SAE
from ..structure.forest import Forest
from ..structure.pairs import PairStatistics
from ..text import Tokens
from .first_letters import FirstLetters
from .needs import Need
from .pooled import LabeledCodes
from .probes import Probes


class MeasuredText(NamedTuple):
    tokens: Tokens
    tokenizer: PreTrainedTokenizerBase


class Firings(NamedTuple):
    """rows: `[n]` the flat position in the measured tokens of every activation, ascending. pairs: their firings."""

    rows: Int[Tensor, "n"]
    pairs: PairStatistics


@dataclass(frozen=True, eq=False)
class Subject:
    """An SAE to be measured, and what its measure needs. `n` activations were measured.

    settings: of every record: what was measured, on what.
    supplies: what each declared need is supplied with when it is asked for.

    Raises LookupError where a measure asks for what it did not declare.
    """

    sae: SAE
    settings: Mapping[str, Any]
    supplies: Mapping[Need, Callable[[], Any]]

    def _supplied(self, need: Need) -> Any:
        if need not in self.supplies:
            declared = ", ".join(self.supplies) or "nothing"
            raise LookupError(f"a measure asks for '{need}', but declares {declared} as its needs")
        return self.supplies[need]()

    @property
    def tokens(self) -> Tokens:
        """The measured text (text)."""
        return self._supplied("text").tokens

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the measured text (text)."""
        return self._supplied("text").tokenizer

    @property
    def rows(self) -> Int[Tensor, "n"]:
        """The flat position in the measured tokens of every activation, ascending (firings)."""
        return self._supplied("firings").rows

    @property
    def pairs(self) -> PairStatistics:
        """On which of the `n` activations each feature fires, and how features fire together (firings)."""
        return self._supplied("firings").pairs

    @property
    def x(self) -> Float[Tensor, "n d_in"]:
        """The activations, on the CPU, in the language model's dtype (activations)."""
        return self._supplied("activations")

    @property
    def probes(self) -> Probes:
        """The directions of the concepts of features (probes)."""
        return self._supplied("probes")

    @property
    def labeled(self) -> LabeledCodes:
        """Labeled texts and their codes (labeled_texts). Raises InputError where the texts are at fault."""
        return self._supplied("labeled_texts")

    @property
    def first_letters(self) -> FirstLetters:
        """Words and their first letters (first_letters). Raises TooFewWords where the tokenizer has too few."""
        return self._supplied("first_letters")

    @property
    def judge(self) -> Judge | None:
        """The judge, opened when it is first asked for; None where none is configured (judge)."""
        return self._supplied("judge")

    @property
    def log(self) -> Path | None:
        """The folder of the training's log.jsonl; None: unknown (training_log)."""
        return self._supplied("training_log")

    @property
    def forest(self) -> Forest:
        """The SAE's own or, for a flat SAE, one inferred from text that is not measured (forest)."""
        return self._supplied("forest")
