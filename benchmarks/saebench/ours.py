"""Our side: the same numbers by saeforest's measures, under the names that SAEBench gives them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saeforest.activations import ActivationReader
from saeforest.evaluation import Source, evaluate
from saeforest.evaluation.options import MeasureOptions
from saeforest.measures.absorption import (
    AbsorptionConfig,
    absorption_scores,
    encode_words,
    k_sparse,
    split_features,
    split_letters,
)
from saeforest.measures.composition import max_cosines
from saeforest.measures.first_letters import (
    LETTERS,
    FirstLetters,
    Words,
    f1_scores,
    letters_of,
    train_probe,
    vocabulary,
)
from saeforest.saes import SAE
from saeforest.text import Tokens

#: SAEBench's name -> our measure and value.
CORE = {
    "l0": ("sparsity", "l0_nonzero"),
    "cossim": ("reconstruction", "cosine"),
    "l2_ratio": ("reconstruction", "norm_ratio"),
    "explained_variance_legacy": ("reconstruction", "fve_legacy"),
    "explained_variance": ("reconstruction", "saebench_explained_variance"),
    "ce_loss_without_sae": ("cross_entropy", "clean"),
    "ce_loss_with_sae": ("cross_entropy", "spliced"),
    "ce_loss_with_ablation": ("cross_entropy", "ablated"),
    "ce_loss_score": ("cross_entropy", "ce_loss_score"),
    "kl_div_with_sae": ("cross_entropy", "kl_spliced"),
    "kl_div_with_ablation": ("cross_entropy", "kl_ablated"),
    "kl_div_score": ("cross_entropy", "kl_div_score"),
}
#: What a user would look at for SAEBench's explained_variance.
PROPER = ("reconstruction", "fve")

Values = dict[str, float | None]


def core(sae: SAE, reader: ActivationReader, tokens: Tokens) -> Values:
    """The values of CORE; absent where a measure has no such value."""
    names = dict.fromkeys(measure for measure, _ in CORE.values())
    source = Source("given tokens", "held_out", 0, "given")
    records = evaluate(sae, reader, tokens, names, source, MeasureOptions(ce_tokens=tokens.n_tokens))
    found = {name: records[m].value[v] for name, (m, v) in CORE.items() if v in records[m].value}
    found["average_max_decoder_cosine_sim"] = float(max_cosines(sae.W_dec.detach()).mean())
    found["fve"] = records[PROPER[0]].value[PROPER[1]]
    return found


def saebench_positions(reader: ActivationReader) -> ActivationReader:
    """Reads the first position too, and whatever the norm: SAEBench leaves out special tokens alone."""
    return replace(reader, exclude_first=False, exclude_special=True, max_norm=0.0)


@torch.no_grad()
def check_adapter(sae: SAE, given: Mapping[str, Tensor]) -> tuple[float, float]:
    """The largest differences between our codes and reconstructions and those of SAEBench's object of the SAE, both as
    shares of the largest entry; `given` has `x`, `f` (dense) and `x_hat`."""
    code, stats = sae.encode_with_stats(given["x"])
    x_hat = sae.decode(code, stats)
    return _share(code.dense(sae.d_sae), given["f"]), _share(x_hat, given["x_hat"])


def _share(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def balanced_words(tokenizer: Any, per_letter: int, seed: int) -> list[str]:
    """Words of the tokenizer, as many of each letter or all that it has, in random order."""
    by_letter: dict[int, list[str]] = defaultdict(list)
    every = vocabulary(tokenizer)
    for word, letter in zip(every, letters_of(every).tolist(), strict=True):
        by_letter[letter].append(word)
    rng = random.Random(seed)
    words = [w for _, some in sorted(by_letter.items()) for w in rng.sample(some, min(per_letter, len(some)))]
    rng.shuffle(words)
    return words


def absorption_given(
    sae: SAE, given: Mapping[str, Tensor], theirs: Mapping[str, Any], config: AbsorptionConfig
) -> dict[str, Values]:
    """Of every letter, from SAEBench's split, probe, activations of words and main features; the number of main
    features from our own logistic regressions on the features in SAEBench's order."""
    code = encode_words(sae, given["x"], config.units)
    mains = {LETTERS.index(own): row["split_feats"] for own, row in theirs["letters"].items()}
    scores = absorption_scores(
        code, given["x"], given["letter"], given["probe_weight"], sae.W_dec.detach(), mains, config
    )
    train, test = (encode_words(sae, given[name], config.units) for name in ("X_train", "X_test"))
    order = torch.zeros(sae.d_sae, len(LETTERS))
    for own, features in theirs["features"].items():
        order[features, LETTERS.index(own)] = torch.arange(len(features), 0, -1).float()
    probes = k_sparse(train, given["y_train"], test, given["y_test"], order, sorted(mains), config.max_k)
    return {
        LETTERS[own]: {
            "mean_absorption_fraction": float(scores.fraction[given["letter"] == own].mean()),
            "full_absorption_rate": float(scores.full[given["letter"] == own].double().mean()),
            "num_split_features": float(split_features(probes[own].f1, config.f1_jump)),
            "largest_difference_of_f1": max(
                abs(a - b) for a, b in zip(probes[own].f1, theirs["f1_by_k"][LETTERS[own]], strict=True)
            ),
        }
        for own in mains
    }


def absorption_of_our_own(
    sae: SAE, given: Mapping[str, Tensor], config: AbsorptionConfig
) -> dict[str, Values]:
    """Of every letter, with probes of our own on SAEBench's split; read where the split was, not in new prompts."""
    splits = [
        Words([""] * len(given[f"X_{name}"]), given[f"y_{name}"], given[f"X_{name}"])
        for name in ("train", "test")
    ]
    train, test = splits
    probe = train_probe(
        train.x, train.letter, width=sae.d_in, batch=config.batch, epochs=config.epochs, seed=config.seed
    )
    predicted, truth = probe.scores(test.x) > 0, F.one_hot(test.letter, len(LETTERS)).bool()
    seen = (predicted & truth).any(1)
    positives = Words([""] * int(seen.sum()), test.letter[seen], test.x[seen])
    data = FirstLetters(train, test, probe, f1_scores(predicted, truth), positives, None)
    mains = {own: split.main for own, split in split_letters(sae, data, config).items()}
    scores = absorption_scores(
        encode_words(sae, positives.x, config.units),
        positives.x,
        positives.letter,
        probe.directions,
        sae.W_dec.detach(),
        mains,
        config,
    )
    return {
        LETTERS[own]: {
            "f1_probe": float(data.f1[own]),
            "mean_absorption_fraction": float(scores.fraction[positives.letter == own].mean()),
            "full_absorption_rate": float(scores.full[positives.letter == own].double().mean()),
            "num_split_features": float(len(main)),
        }
        for own, main in mains.items()
    }


def read_prompts(reader: ActivationReader, prompts: Sequence[str], bos: bool) -> Tensor:
    """The activations at the word of each prompt, five tokens before its end; with a BOS before it or without."""
    tokenizer: Any = reader.lm.tokenizer
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if bos:
            ids = [tokenizer.bos_token_id, *ids]
        found.append(reader.lm.activations(torch.tensor([ids]), reader.site)[0, -6])
    return torch.stack(found)
