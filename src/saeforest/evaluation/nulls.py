"""Nulls: the SAEs and forests that a value about a hierarchy is compared with (docs/spec/records.md#nulls).

- Parents shuffled: the parents of edges change places with each other, between edges whose children lie in one layer
  and whose parents lie in one layer and fire about equally often. Every parent keeps its number of children in each
  layer. A gated SAE with these parents fires differently, so it is a copy that is measured anew.
- Untrained: the SAE as training starts it, with its first weights and parents, bit for bit. An SAE whose training
  starts without parents has its first weights under the parents that were learned.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..activations import ActivationReader
from ..infer import InferConfig
from ..saes import SAE, SAEConfig
from ..saes.files import trained_with
from ..saes.systems import start_training
from ..saes.training import RunLength, starts_without_edges
from ..structure.forest import ROOT, Forest
from ..structure.shuffled import BLOCK, shuffled_parents
from ..text import Tokens
from ..training.settle import dataset_scale
from .windows import read_windows

#: Increased when nulls are made in another way, so that older records are replaced.
VERSION = 1
#: Random seed for shuffling parents.
SEED = 0
# Number of activations, the first of those measured, on which it is counted how often parents fire; and the number of
# them that stand in for the first batch of training.
_SAMPLE, _FIRST_BATCH = 16_384, 2_048
_ROWS = 4_096


#: Why the start of an SAE is not known where a forest was given in place of its own.
FOREST_GIVEN = "the measured forest was given, and it is not known how to make one for the untrained SAE"


class Start(NamedTuple):
    """How the training of an SAE started: its configuration, and the random seed of its weights.

    infer, infer_tokens: if it learns no forest: how one was inferred, and from how many tokens.
    """

    config: SAEConfig
    seed: int
    infer: InferConfig | None = None
    infer_tokens: int = 0


class Sample(NamedTuple):
    """Some activations of those that are measured, and what the SAE should reconstruct there."""

    x: Float[Tensor, "n d_in"]
    target: Float[Tensor, "n d_out"]


class NullSAE(NamedTuple):
    """An SAE and its forest that hold no learned hierarchy. how: what the SAE is, if it is the untrained one."""

    sae: SAE
    forest: Forest
    how: str = "as training starts it"


class Nulls(NamedTuple):
    """The nulls of an SAE, or why there is none. settings: how they were made, for the records."""

    shuffled: NullSAE | str
    untrained: NullSAE | str
    settings: Mapping[str, Any]


def start_of(sae: SAE) -> Start | str:
    """How an SAE started by its metadata, or why that is not known."""
    seed = sae.metadata.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool):
        return "the metadata of the SAE do not hold the random seed of its training"
    if (config := trained_with(sae)) is None:
        return "the metadata of the SAE do not hold the settings of its training"
    return Start(config, seed)


@torch.no_grad()
def read_sample(reader: ActivationReader, tokens: Tokens) -> Sample:
    """The first activations of the measured text.

    Raises InputError if an activation is NaN or infinite.
    """
    x: list[Tensor] = []
    target: list[Tensor] = []
    for windows in torch.arange(len(tokens.ids)).split(reader.batch_size):
        view = read_windows(reader, tokens, windows)
        x.append(view.kept.float())
        target.append(view.target.float())
        if sum(map(len, x)) >= _SAMPLE:
            break
    return first_rows(torch.cat(x), torch.cat(target))


def first_rows(x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> Sample:
    """The first of some activations."""
    return Sample(x[:_SAMPLE], target[:_SAMPLE])


def untrained(start: Start, sae: SAE, sample: Sample) -> NullSAE | str:
    """The SAE from which the training of `sae` started, with its forest, ready to be measured; or why there is none.

    Its `b_dec`, and for some systems a threshold or a forest, come from the sample as from a first batch of training.
    If training starts without parents, it has those of `sae`, and is gated by them from its first batch on.
    """
    if not len(sample.x):
        return "no token was measured"
    first = Sample(*(part[:_FIRST_BATCH].to(sae.device, torch.float32) for part in sample))
    config = start.config
    if config.normalize_activations == "dataset_scale":
        config = replace(config, normalize_activations=dataset_scale(first.x))  # pyright: ignore[reportArgumentType]
    if sae.is_transcoder and getattr(config, "normalize_target", None) == "dataset_scale":
        config = replace(config, normalize_target=dataset_scale(first.target))  # pyright: ignore[reportArgumentType, reportCallIssue]
    d_out = sae.d_out if sae.is_transcoder else None
    run = RunLength(1, len(first.x))
    training = start_training(config, sae.d_in, run, d_out=d_out, seed=start.seed, device=sae.device)
    before = training.untrained(*first, learned=sae.parent)
    how = "as training starts it"
    if starts_without_edges(config):
        how += ", but with the parents that were learned"
    return NullSAE(before, before.forest, how)


def make_nulls(
    sae: SAE, forest: Forest, sample: Sample, start: Start | str, untrained: NullSAE | str
) -> Nulls:
    """The nulls of an SAE with a forest.

    start, untrained: how training started, and the untrained SAE with its forest, or why they are not known.
    """
    settings: dict[str, Any] = {
        "version": VERSION,
        "shuffled": f"parents permuted among edges of one layer of children and one of parents, in blocks of {BLOCK} "
        f"parents that fire about equally often, seed {SEED}",
        "sample": len(sample.x),
        "untrained": untrained if isinstance(untrained, str) else untrained.how,
    }
    if isinstance(start, Start):
        settings["untrained_seed"] = start.seed
    if not bool((forest.parent != ROOT).any()):
        return Nulls("the forest has no edges", untrained, settings)
    parent = shuffled_parents(forest, fired(sae, sample.x), SEED)
    kept = int(((parent == forest.parent) & (parent != ROOT)).sum())
    settings |= {"edges": forest.edges.shape[1], "edges_not_moved": kept}
    own = sae.gated and torch.equal(sae.forest.parent, forest.parent)
    other = Forest(parent, forest.layer_sizes, layered=forest.layered)
    return Nulls(NullSAE(with_parents(sae, parent) if own else sae, other), untrained, settings)


@torch.no_grad()
def fired(sae: SAE, x: Float[Tensor, "n d_in"]) -> Int[Tensor, "d_sae"]:
    """On how many activations each feature fires."""
    counts = torch.zeros(sae.d_sae, dtype=torch.int64)
    for part in x.split(_ROWS):
        code = sae.encode(part.to(sae.device).float())
        counts += code.fired(sae.d_sae, sae.config.activation_threshold).cpu()
    return counts


def with_parents(sae: SAE, parent: Int[Tensor, "d_sae"]) -> SAE:
    """A copy of an SAE with other parents. It shares all weights with the SAE."""
    other = copy.copy(sae)
    other._buffers = {**sae._buffers, "parent": parent.to(sae.parent)}
    return other
