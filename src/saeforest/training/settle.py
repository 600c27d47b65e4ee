"""Replace `auto`, None and `dataset_scale` in a configuration by actual values.

These values depend on the machine, the language model, the text or the activations. A run determines each of them as
soon as that is possible, in the order of this file, and saves the configuration: so that it continues with the same
values if it is killed and resumed, and config.yaml states in the end what was done.

                        determines                                           from
    settle_machine      data types, absolute paths                           the machine
    settle_harvest      model, site, text, positions                         the harvest, if `data` is one
    settle_text         BOS, revision of a Hub data set                      the language model
    settle_positions    tokens, largest norm                                 the text
    settle_store        where activations are stored                         their number
    settle_scale        factor that normalizes the activations               the activations
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from ..activations import ActivationBatch, ActivationReader
from ..activations.data import StoredData, data_of
from ..activations.manifest import Manifest
from ..config import TrainConfig, resolve_device
from ..errors import InputError
from ..lm import ModelIdentity, full_name, identify, same_model
from ..memory import available
from ..optim import Precision, resolve_precision
from ..output import note
from ..saes import TreeConfig
from ..saes.base import TranscoderConfig
from ..text import Tokens, is_hub_source, pinned

# The largest fraction of the available memory that activations may take; if they need more, they go to disk.
_MEMORY_SHARE = 0.4


def settle(config: TrainConfig) -> TrainConfig:
    """Determine all values that are known before anything is read. Raises InputError as the two parts do."""
    return settle_harvest(settle_machine(config))


def settle_machine(config: TrainConfig) -> TrainConfig:
    """Determine the data types that `auto` means on this machine, and make local paths absolute.

    With absolute paths, the run can be measured from any folder.
    """
    device = resolve_device(config.device)
    data = Path(os.path.expanduser(config.data))  # unlike Path.expanduser, this accepts an unknown user

    def settled(precision: Precision) -> Precision:
        return "bfloat16" if resolve_precision(precision, device) == torch.bfloat16 else "float32"

    for name, member in config.members().items():
        if isinstance(member.sae, TreeConfig) and member.sae.allocation.ends_at_once:
            note(
                f"{name}: sae.allocation.root_reset_at = 0 without until: dead children are never reallocated; "
                "set until, say to 0.5, to reallocate without a reset, or first = 0 if this is meant"
            )
    config = replace(
        config,
        model=full_name(config.model) if config.model else "",  # unknown if the activations were passed in
        data=str(data.resolve()) if data.exists() else config.data,
        lm=replace(config.lm, dtype=settled(config.lm.dtype)),
    )
    return config.with_each(
        lambda member: replace(member, optim=replace(member.optim, precision=settled(member.optim.precision)))
    )


def settle_harvest(config: TrainConfig) -> TrainConfig:
    """Take the settings of a run on harvested activations from the harvest.

    Raises InputError if the folder is incomplete, or if the configuration names another model, site or BOS than the
    harvest. Model and site may be left at their defaults.
    """
    stored = data_of(config.data)
    if not isinstance(stored, StoredData):
        return config
    said, default = stored.manifest, TrainConfig()
    if config.model == default.model:
        config = replace(config, model=said.model)
    else:
        check_model(stored.model, identify(config.model), config.data)
    if config.site not in (default.site, said.site):
        raise InputError(
            f"{config.data}: activations of site '{said.site}', but the configuration has '{config.site}'; "
            f"set site to {said.site}"
        )
    if config.target is not None and config.target not in said.sites:
        raise InputError(
            f"{config.data}: no activations of site '{config.target}'; harvest again with this target"
        )
    bos = "yes" if said.prepend_bos else "no"
    if config.text.bos not in ("auto", bos):
        raise InputError(
            f"text.bos = {config.text.bos}: {config.data} contains activations of text read "
            f"{'with' if said.prepend_bos else 'without'} BOS; set text.bos to {bos}, or harvest again"
        )
    return replace(
        config,
        site=said.site,
        tokens=_tokens_to_read(config, said),
        text=replace(
            config.text,
            context=said.context,
            held_out=said.held_out,
            bos=bos,
            column=said.column,
            split=said.split,
            chat=said.chat,
        ),
        activations=replace(
            config.activations,
            store="disk",
            exclude_first=said.exclude_first,
            exclude_special=said.exclude_special,
            max_norm=said.max_norm,
        ),
    )


def _tokens_to_read(config: TrainConfig, said: Manifest) -> int:
    """How many of the first tokens of a harvest a run reads, in whole windows: all of them by default."""
    default, there = TrainConfig().tokens, said.tokens
    if config.tokens == default:
        if there > default:
            note(
                f"{config.data}: all of its {there:,} tokens are read; another number of tokens reads the first ones"
            )
        return there
    wanted = config.tokens // said.context * said.context
    if wanted == 0:
        raise InputError(
            f"tokens = {config.tokens}: expected at least one window of {said.context} tokens, as in {config.data}; "
            "increase tokens"
        )
    if wanted > there:
        note(f"{config.data}: tokens = {config.tokens:,}, but it has only {there:,}; all are read")
    return min(wanted, there)


def check_model(harvested: ModelIdentity, model: ModelIdentity, data: str) -> None:
    """Raise InputError unless activations were harvested from `model`, under whatever name."""
    if not same_model(harvested, model):
        raise InputError(
            f"{data}: activations of model '{harvested}', but the configuration has '{model}'; "
            f"set model to {harvested.name} as it was, or harvest again"
        )


def settle_text(config: TrainConfig, reader: ActivationReader) -> TrainConfig:
    """Determine `text.bos` from the tokenizer, and fix a Hub data set to its current revision."""
    data = pinned(config.data) if is_hub_source(config.data) else config.data
    bos = "no" if reader.bos_id is None else "yes"
    return replace(config, data=data, text=replace(config.text, bos=bos))


def settle_positions(config: TrainConfig, reader: ActivationReader, tokens: Tokens) -> TrainConfig:
    """Determine the number of tokens in the text, and `activations.max_norm`, which is set in the reader too."""
    if tokens.n_tokens <= config.tokens - tokens.context:
        config = replace(config, tokens=tokens.n_tokens)
    if config.activations.max_norm is None:
        reader.settle_max_norm(tokens)
    return replace(config, activations=replace(config.activations, max_norm=reader.max_norm))


def settle_store(config: TrainConfig, n_tokens: int, width: int, itemsize: int) -> TrainConfig:
    """Determine `activations.store`: memory if the activations fit.

    width: width of an activation, summed over all sites.
    itemsize: bytes of a number.
    """
    store = config.activations.store
    if store == "auto":
        if n_tokens * width * itemsize <= _MEMORY_SHARE * available():
            store = "memory"
        else:
            store = "disk" if config.epochs > 1 else "live"
    return replace(config, activations=replace(config.activations, store=store))


def settle_scale(config: TrainConfig, first: Callable[[], ActivationBatch]) -> TrainConfig:
    """Determine the factors for `dataset_scale`, of the activations and of a transcoder's target.

    first: returns some activations; it is called only if they are needed.
    """

    def settled(member: TrainConfig) -> TrainConfig:
        sae = member.sae
        if sae.normalize_activations == "dataset_scale":
            sae = replace(sae, normalize_activations=dataset_scale(batch().x))
        target = member.target
        if (
            target is not None
            and isinstance(sae, TranscoderConfig)
            and sae.normalize_target == "dataset_scale"
        ):
            sae = replace(sae, normalize_target=dataset_scale(batch().others[target]))
        return replace(member, sae=sae)

    batch, members = cache(first), config.members()
    nothing_open = all(settled(member) == member for member in members.values())
    return config if nothing_open else config.with_each(settled)


def dataset_scale(x: torch.Tensor) -> float:
    """The factor that makes the mean norm of the activations sqrt(d_in) (docs/spec/activations.md#dataset-scale)."""
    return math.sqrt(x.shape[1]) / float(x.float().norm(dim=1).mean())
