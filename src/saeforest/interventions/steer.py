"""Steering: a language model that writes with some features of an SAE changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from ..activations import ActivationReader
from ..errors import InputError
from ..lm import LanguageModel
from ..lm.hooks import ForwardPass, Hook
from ..saes import SAE
from ..session import check_site
from ..sparse_code import SparseCode
from .edits import CodeEdit, Edit, edited
from .splice import Splice, change

Part = Literal["all", "prompt", "completion"]
At = Part | slice | Sequence[int]
"""Positions: those of a part of the text, a slice of positions, or their numbers, all counted from 0."""


@dataclass(frozen=True)
class Where:
    """The positions of a text that are steered.

    at: a part of the text (in `LanguageModel.generate`, "prompt" or "completion"; elsewhere all of a text is prompt),
        or positions counted from 0.
    exclude_first, exclude_special, max_norm: positions to leave alone in any case, which by default are those that an
        SAE is not trained on: the first of each text, and special tokens. A `max_norm` above 0 also leaves out
        activations with a larger norm.

    Raises InputError for a slice that counts from the end, which is not known.
    """

    at: At = "all"
    exclude_first: bool = True
    exclude_special: bool = True
    max_norm: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.at, slice) and any((end or 0) < 0 for end in (self.at.start, self.at.stop)):
            raise InputError(
                f"at = {self.at}: expected positions of 0 or more; the end of a text is not known"
            )

    def keep(self, now: ForwardPass, x: Tensor, special: Tensor) -> Bool[Tensor, "batch ctx"]:
        """Which positions of a forward pass are steered. x: `[batch, ctx, d]` activations; special: ids of tokens."""
        place = torch.arange(now.start, now.start + now.shape[1], device=x.device)
        keep = self._in_part(place, now.prompt).expand(now.shape).clone()
        if self.exclude_first:
            keep[:, place == 0] = False
        if self.exclude_special and now.ids is not None:
            keep &= ~torch.isin(now.ids.to(x.device), special.to(x.device))
        if self.max_norm:
            keep &= ~(x.float().norm(dim=-1) > self.max_norm)
        return keep

    def _in_part(self, place: Tensor, prompt: int) -> Tensor:
        match self.at:
            case "all":
                return torch.ones_like(place, dtype=torch.bool)
            case "prompt":
                return place < prompt
            case "completion":
                return place >= prompt
            case slice():
                start, stop, step = self.at.start or 0, self.at.stop, self.at.step or 1
                inside = (place >= start) & ((place - start) % step == 0)
                return inside if stop is None else inside & (place < stop)
            case _:
                return torch.isin(place, torch.tensor(list(self.at), device=place.device))


@dataclass
class Steered:
    """What steering has done so far. read: positions that were steered; changed: those where the code changed."""

    read: int = 0
    changed: int = 0


@contextmanager
def steer(
    lm: LanguageModel,
    sae: SAE,
    edits: Sequence[Edit],
    where: Where | None = None,
    *,
    error: bool = True,
    closed: bool | None = None,
    site: str | None = None,
) -> Iterator[Steered]:
    """Context in which a language model computes with some features of an SAE changed: see `saeforest.steer`."""
    reader = reader_of(lm, sae, site)
    check_features(sae, edits, error)
    parent = sae.parent if (sae.gated if closed is None else closed) else None
    where, done = where or Where(), Steered()
    passes: list[ForwardPass] = []

    def keep(x: Tensor) -> Tensor:
        return where.keep(passes[0], x, lm.special_ids)

    one = Splice(sae, _counting(edited(edits, parent), done), error, keep)
    with lm.hooked(hooks_of(one, reader)) as now:
        passes.append(now)
        yield done


def hooks_of(one: Splice, reader: ActivationReader) -> dict[str, Hook]:
    """The hooks of a splice at the sites of a reader."""
    if not reader.others:
        return {reader.site.name: one}
    return {reader.site.name: one.read, reader.written.name: one.write}


def _counting(edit: CodeEdit, done: Steered) -> CodeEdit:
    def counted(code: SparseCode) -> SparseCode:
        new = edit(code)
        done.read += len(code)
        done.changed += int((change(code, new).values != 0).any(-1).sum())
        return new

    return counted


def reader_of(lm: LanguageModel, sae: SAE, site: str | None = None) -> ActivationReader:
    """The reader of an SAE's site and, for a transcoder, of its target.

    site: where the SAE was trained; None for what its metadata say. Raises InputError if the SAE does not fit.
    """
    name, target = site or sae.metadata.get("hook_name"), sae.metadata.get("hook_name_out")
    if not name:
        raise InputError(
            "site: the SAE's metadata do not say where it was trained; give its name, such as "
            "blocks.15.hook_resid_post"
        )
    if sae.is_transcoder and not target:
        raise InputError("site: the metadata of this transcoder do not name its target (hook_name_out)")
    others = (lm.site(str(target)),) if sae.is_transcoder else ()
    known = sae.metadata.get("prepend_bos")
    bos = "auto" if known is None else "yes" if known else "no"
    reader = ActivationReader(lm, lm.site(str(name)), others=others, bos=bos)
    check_site(sae, reader)
    return reader


def check_features(sae: SAE, edits: Sequence[Edit], error: bool = True) -> None:
    """Raises InputError if the SAE has no such feature, or if one is not decoded when the error term is not kept."""
    for edit in edits:
        if edit.features[-1] >= sae.d_sae:
            raise InputError(f"feature {edit.features[-1]}: expected 0 to {sae.d_sae - 1}")
    if not error:
        left_out = (~sae.in_reconstruction).nonzero().flatten().tolist()
        mute = {f for edit in edits for f in edit.features}.intersection(left_out)
        if mute:
            raise InputError(
                f"feature {min(mute)}: takes no part in the reconstruction, which is that of the last level; "
                "keep the error term (error=True)"
            )
