"""The inputs of a run: its language model and its text, and what is recorded of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from . import __version__
from .activations import ActivationReader
from .activations.data import GivenData, data_of
from .config import TextConfig, TrainConfig, resolve_device
from .errors import InputError
from .lm import ModelIdentity, load_lm, same_model
from .lm.parity import parity
from .optim import resolve_precision
from .output import note
from .saes import SAE
from .text import (
    Reading,
    Tokens,
    adds_bos,
    chat_renderer,
    hub_name,
    is_hub_source,
    tokenize,
)


def open_reader(config: TrainConfig) -> ActivationReader:
    """The language model of a configuration, ready to read at its site, and at its target if there is one.

    Raises InputError if the run was trained on a tensor, so that its language model is unknown.
    """
    if isinstance(data_of(config.data), GivenData):
        raise InputError(
            "this run was trained on a tensor in Python, so its language model and text are unknown; "
            "give your own activations: saeforest.measure(run, x) or saeforest.infer_forest(sae, x)"
        )
    device = resolve_device(config.device)
    lm = load_lm(config.model, device=str(device), dtype=resolve_precision(config.lm.dtype, device))
    lm.check_context(config.text.context, "text.context")
    return ActivationReader(
        lm,
        lm.site(config.site),
        others=() if config.target is None else (lm.site(config.target),),
        exclude_first=config.activations.exclude_first,
        exclude_special=config.activations.exclude_special,
        max_norm=config.activations.max_norm or 0.0,
        batch_size=config.lm.batch_size,
        bos=config.text.bos,
    )


def reading_config(
    sae: SAE,
    source: str,
    tokens: int,
    model: str = "",
    site: str = "",
    data: str = "",
    device: str | None = None,
) -> TrainConfig:
    """What an SAE without a run reads: as given, else as in its metadata; by default the packaged text.

    source: what the SAE was loaded from, for messages. tokens: number of tokens that are going to be read.

    Raises InputError if model or site are neither given nor in the metadata.
    """
    about = sae.metadata
    model, site = model or about.get("model_name", ""), site or about.get("hook_name", "")
    for name, value in (("model", model), ("site", site)):
        if not value:
            raise InputError(f"{source}: its metadata do not say which {name} it was trained on; give {name}")
    context = about.get("context_size", TextConfig.context)
    prepend = about.get("prepend_bos")
    bos = ("yes" if prepend else "no") if isinstance(prepend, bool) else "auto"
    if not isinstance(context, int) or context < 1:
        raise InputError(f"{source}: context_size = {context!r} in its metadata: expected a number of tokens")
    text = TextConfig(context=context, bos=bos)
    train = TrainConfig(model=model, site=site, tokens=max(tokens, context), text=text)
    if sae.is_transcoder:
        train = replace(train, sae=sae.config, target=about.get("hook_name_out"))
    return replace(train, data=data or train.data, device=device or train.device)


def text_source(config: TrainConfig) -> str:
    """The source of the text; for harvested activations, the source they were harvested from."""
    return data_of(config.data).source


def read_tokens(
    config: TrainConfig, reader: ActivationReader, split: Literal["train", "held_out"], n_tokens: int
) -> Tokens:
    """Read text of a split as tokens of the run's language model. A note says so if there are fewer than `n_tokens`."""
    render = chat_renderer(reader.lm.tokenizer, reader.lm.name) if config.text.chat else None
    tokens = tokenize(
        text_source(config),
        reader.lm.tokenizer,
        reader.lm.eos_id,
        n_tokens=n_tokens,
        context=config.text.context,
        split=split,
        held_out=config.text.held_out,
        seed=config.data_seed,
        bos="no" if reader.bos_id is None else "yes",
        reading=Reading(config.text.column, config.text.split, render),
    )
    reader.lm.check_ids(tokens.ids)
    if tokens.n_tokens <= n_tokens - config.text.context:
        note(
            f"text source '{text_source(config)}': the {split} text has {tokens.n_tokens:,} tokens in whole windows, "
            f"fewer than the {n_tokens:,} requested"
        )
    return tokens


def about_model(reader: ActivationReader) -> dict[str, Any]:
    """The description of a run's language model: its identity, its sites as transformers names them, and its results
    on a short text.

    Notes tell of anything unusual in these results.
    """
    found = parity(reader.lm, bos=reader.bos_id is not None)
    for warning in found["warnings"]:
        note(warning)
    sites = {site.name: site.place for site in (reader.site, *reader.others)}
    return {**reader.lm.identity.to_dict(), "sites": sites, **found}


def about_text(config: TrainConfig, tokens_read: int) -> dict[str, Any]:
    """The metadata of an SAE about its training text; `dataset_path` and `prepend_bos` are SAELens' names."""
    source = text_source(config)
    place = hub_name(source) if is_hub_source(source) else None
    found = {
        "context_size": config.text.context,
        "prepend_bos": config.text.bos == "yes",
        "dataset": source,
        "dataset_path": place.name if place else source,
        "tokens_read": tokens_read,
    }
    if place:
        subset = {"dataset_subset": place.subset} if place.subset else {}
        revision = {"dataset_revision": place.revision} if place.revision else {}
        found |= {**subset, **revision, "dataset_split": config.text.split}
    return found


def check_site(sae: SAE, reader: ActivationReader) -> None:
    """Raise InputError unless the SAE fits the site: its width and, if its metadata say so, model, site and BOS.

    The same is checked for the target of a transcoder.
    """
    if sae.is_transcoder != bool(reader.others):
        raise InputError(
            "the SAE is a transcoder, but the run has no target"
            if sae.is_transcoder
            else "the run has a target, but the SAE is not a transcoder"
        )
    places = [(reader.site, "hook_name", sae.d_in)]
    places += [(site, "hook_name_out", sae.d_out) for site in reader.others]
    for site, _, expected in places:
        if reader.widths[site.name] != expected:
            raise InputError(
                f"site {site.name} of {reader.lm.name} has width {reader.widths[site.name]}, but the SAE's is "
                f"{expected}; use the model and site it was trained on"
            )
    trained = ModelIdentity.from_dict(sae.metadata)
    if trained is not None and not same_model(trained, reader.lm.identity):
        raise InputError(
            f"the SAE was trained on model {trained}, but the run's is {reader.lm.identity}; "
            "use the SAE of this run, or the model and site it was trained on"
        )
    for site, key, _ in places:
        there = sae.metadata.get(key, site.name)
        if there != site.name:
            raise InputError(
                f"the SAE was trained on site {there}, but the run's is {site.name}; "
                "use the SAE of this run, or the model and site it was trained on"
            )
    check_bos(sae, prepend_bos=reader.bos_id is not None)
    if "prepend_bos" not in sae.metadata and reader.bos_id is None and adds_bos(reader.lm.tokenizer):
        note(
            f"the tokenizer of {reader.lm.name} puts BOS before a text, but this SAE's metadata do not say whether it "
            "was trained with BOS: text is read without it"
        )


def check_bos(sae: SAE, *, prepend_bos: bool) -> None:
    """Raise InputError if the SAE was trained with BOS and text is read without it, or vice versa."""
    trained = sae.metadata.get("prepend_bos", prepend_bos)
    if trained != prepend_bos:
        states = {True: "with BOS before every window", False: "without BOS"}
        raise InputError(
            f"the SAE was trained on text {states[bool(trained)]}, and here it would be measured "
            f"{states[prepend_bos]}; set text.bos to {'yes' if trained else 'no'}"
        )


def about_activations(config: TrainConfig, tokens: Tokens, reader: ActivationReader) -> dict[str, Any]:
    """The description of harvested activations for their manifest."""
    model = reader.lm.identity
    return {
        "model": model.name,
        "model_revision": model.revision,
        "model_fingerprint": model.fingerprint,
        "site": config.site,
        "data": config.data,
        "tokens": tokens.n_tokens,
        "context": tokens.context,
        "prepend_bos": tokens.prepend_bos,
        "held_out": config.text.held_out,
        "column": config.text.column,
        "split": config.text.split,
        "chat": config.text.chat,
        "seed": config.data_seed,
        "exclude_first": config.activations.exclude_first,
        "exclude_special": config.activations.exclude_special,
        "max_norm": config.activations.max_norm,
        "version": __version__,
        **({"sites": reader.widths} if reader.others else {}),
    }
