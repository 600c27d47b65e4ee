"""A text of a person's own: the active paths of the forest on each token, and what the model predicts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from threading import Lock

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import ActivationReader
from ...errors import InputError
from ...interventions.splice import splice
from ...saes import SAE
from ...saes.normalizer import TokenStats
from ...session import check_site
from ...sparse_code import SparseCode
from ...structure.forest import Forest
from ..answers.requests import Position, Prediction, PromptAnswer, Step
from ..labels.labels import Labels
from ..queries.contexts import TokenTexts

#: Limits of a prompt: longer ones would keep others waiting, and nobody reads them token by token.
MOST_CHARACTERS, MOST_TOKENS = 4_000, 256
_PREDICTIONS = 5
_DIGITS = 4


class Prompting:
    """Runs the language model and an SAE on texts, one at a time.

    open: opens the language model at the SAE's site; called when the first text comes.
    """

    def __init__(
        self,
        sae: SAE,
        forest: Forest,
        texts: TokenTexts,
        labels: Labels,
        open: Callable[[], ActivationReader],
    ) -> None:
        self._sae, self._forest, self._texts, self._labels, self._open = sae, forest, texts, labels, open
        self._lock = Lock()

    @cached_property
    def reader(self) -> ActivationReader:
        """The language model at the SAE's site. Loads it, at the first use."""
        reader = self._open()
        check_site(self._sae, reader)
        return reader

    @torch.no_grad()
    def answer(self, text: str) -> PromptAnswer:
        """`prompt`. Raises InputError if the text is empty or too long, or the model cannot be loaded."""
        if not text.strip():
            raise InputError("text: expected some text")
        if len(text) > MOST_CHARACTERS:
            raise InputError(f"text of {len(text):,} characters: expected at most {MOST_CHARACTERS:,}")
        with self._lock:
            return self._answer(text)

    def _answer(self, text: str) -> PromptAnswer:
        reader, lm = self.reader, self.reader.lm
        encoded = lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        own: list[int] = [int(i) for i in encoded]  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
        bos = [] if reader.bos_id is None else [reader.bos_id]
        most = min(MOST_TOKENS, (lm.max_context or MOST_TOKENS) - len(bos))
        if not 0 < len(own) <= most:
            raise InputError(f"text of {len(own):,} tokens: expected 1 to {most:,}")
        ids = torch.tensor([bos + own])
        clean = lm.logits(ids)[0, len(bos) :].float()
        x, target = self._activations(ids, len(bos))
        code, stats = self._sae.encode_with_stats(x)
        hook = splice(self._sae, keep=self._kept(ids, len(bos)))
        spliced = None
        if not self._sae.is_transcoder:
            spliced = lm.logits(ids, {reader.site: hook})[0, len(bos) :].float()
        errors = self._errors(x, target, code, stats)
        return PromptAnswer(
            tokens=tuple(self._texts.of(i) for i in own),
            per_token=tuple(
                Position(
                    paths=self._paths(code[i]),
                    errors=tuple(errors[i]),
                    clean=self._predictions(clean[i]),
                    spliced=() if spliced is None else self._predictions(spliced[i]),
                )
                for i in range(len(own))
            ),
            layers=self._sae.reconstruction.last + 1,
        )

    def _kept(self, ids: Tensor, n_bos: int) -> Tensor:
        keep = torch.ones(ids.shape, dtype=torch.bool)
        keep[:, :n_bos] = False
        return keep.to(self.reader.lm.device)

    def _activations(self, ids: Tensor, n_bos: int) -> tuple[Tensor, Tensor]:
        """The activations of the prompt's tokens at the SAE's site, and those that it reconstructs."""
        reader = self.reader
        sites = [reader.site, *reader.others]
        found = reader.lm.activations(ids, sites)
        x, *others = (found[site.name][0, n_bos:].float().to(self._sae.device) for site in sites)
        return x, others[0] if others else x

    def _errors(
        self, x: Tensor, target: Tensor, code: SparseCode, stats: TokenStats
    ) -> list[list[float | None]]:
        """For each token, the fraction of the activation not reconstructed by no layer, the first, and so on."""
        empty = SparseCode(torch.zeros_like(code.values), code.ids)
        start = self._squared(target - self._sae.decode(empty, stats))
        columns = [torch.ones_like(start)]
        for layer in range(self._sae.reconstruction.last + 1):
            rest = self._squared(target - self._sae.decode(code, stats, layer=layer))
            columns.append(rest / start)
        rows = torch.stack(columns, 1).tolist()
        return [[round(v, _DIGITS) if v - v == 0 else None for v in row] for row in rows]

    @staticmethod
    def _squared(x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        return x.double().square().sum(-1)

    def _paths(self, code: SparseCode) -> tuple[tuple[Step, ...], ...]:
        """The paths to the active features without an active child, the strongest topmost ancestor first."""
        active = code.active(self._sae.config.activation_threshold)
        value = dict(zip(code.ids[active].tolist(), code.values[active].tolist(), strict=True))
        above = {int(self._forest.parent[f]) for f in value}
        paths = [self._forest.path(f) for f in sorted(value) if f not in above]
        # Without a gate an ancestor may be silent; it is shown with 0.
        paths.sort(key=lambda path: (-value.get(path[0], 0.0), path))
        return tuple(
            tuple(Step(f, self._labels.of(f), round(value.get(f, 0.0), _DIGITS)) for f in path)
            for path in paths
        )

    def _predictions(self, logits: Float[Tensor, "vocab"]) -> tuple[Prediction, ...]:
        p, ids = logits.softmax(-1).topk(min(_PREDICTIONS, len(logits)))
        return tuple(
            Prediction(self._texts.of(i), round(q, 6)) for i, q in zip(ids.tolist(), p.tolist(), strict=True)
        )
