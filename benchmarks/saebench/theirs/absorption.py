"""SAEBench's absorption evaluation on a given list of words, and what another library needs to repeat it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sae_bench.evals.absorption import common, feature_absorption, k_sparse_probing
from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig
from sae_bench.evals.absorption.feature_absorption_calculator import FeatureAbsorptionCalculator
from sae_bench.evals.absorption.main import _aggregate_results_df
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens import HookedTransformer

from .adapter import ForestSAE

LETTERS = k_sparse_probing.LETTERS
NAME = "saeforest"


def evaluate(
    model: HookedTransformer, sae: ForestSAE, words: list[str], seed: int, folder: Path
) -> dict[str, Any]:
    """What `run_eval` does with one SAE, on these words alone; and its last stage once more, with codes in the units of
    the activations.

    Writes `absorption.safetensors`: of every word of the two splits its activation and letter, the ground-truth probe,
    and of every word whose absorption was measured the letter and the activation, in the order of `prompts`.
    """
    # The vocabulary is the whole of the tokenizer's; there is no other way to give a smaller one.
    common.get_alpha_tokens = feature_absorption.get_alpha_tokens = lambda _tokenizer: list(words)
    # run_eval has a random_seed but applies it nowhere.
    random.seed(seed)
    torch.manual_seed(seed)
    # It takes up whatever it finds there, of other words too.
    kept = folder / "absorption"
    shutil.rmtree(kept, ignore_errors=True)
    config, layer = AbsorptionEvalConfig(), sae.cfg.hook_layer
    shared = {
        "model": model,
        "sae": sae,
        "layer": layer,
        "sae_name": NAME,
        "max_k_value": config.max_k_value,
        "prompt_template": config.prompt_template,
        "prompt_token_pos": config.prompt_token_pos,
        "device": "cpu",
        "probes_dir": kept / "probes",
    }
    probing = k_sparse_probing.run_k_sparse_probing_experiment(
        **shared,
        experiment_dir=kept / "k_sparse_probing",
        f1_jump_threshold=config.f1_jump_threshold,
        precalc_k_sparse_probe_sae_acts=True,
    )
    sae.seen = []
    scored = feature_absorption.run_feature_absortion_experiment(
        **shared,
        experiment_dir=kept / "feature_absorption",
        sparse_probing_experiment_dir=kept / "k_sparse_probing",
        feature_split_f1_jump_threshold=config.f1_jump_threshold,
        batch_size=config.llm_batch_size,
    )
    x, sae.seen = torch.cat(sae.seen), None
    return results(sae, model.cfg.model_name, words, probing, scored, x, folder)


def results(
    sae: ForestSAE,
    model_name: str | None,
    words: list[str],
    probing: pd.DataFrame,
    scored: pd.DataFrame,
    x: Tensor,
    folder: Path,
) -> dict[str, Any]:
    layer, kept = sae.cfg.hook_layer, folder / "absorption"
    probe = common.load_probe(model_name, layer, kept / "probes", device="cpu")
    splits = np.load(kept / "probes" / str(model_name) / f"layer_{layer}" / "data.npz")
    tensors = {name: torch.from_numpy(splits[name]) for name in ("X_train", "X_test", "y_train", "y_test")}
    tensors |= {"probe_weight": probe.weights.detach(), "x": x}
    tensors["letter"] = torch.tensor([LETTERS.index(letter) for letter in scored["letter"]])
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "absorption.safetensors")

    negatives = feature_absorption.get_stats_and_likely_false_negative_tokens(
        probing, NAME, layer, kept / "k_sparse_probing" / NAME
    )
    config = AbsorptionEvalConfig()
    calculator = FeatureAbsorptionCalculator(
        model=Replayed(x, config.prompt_token_pos),  # pyright: ignore[reportArgumentType]
        icl_word_list=words,
        max_icl_examples=10,
        word_token_pos=config.prompt_token_pos,
    )
    sae.effective = True
    again = feature_absorption.calculate_projection_and_cos_sims(calculator, sae, probe, layer, negatives)
    sae.effective = False

    ks = range(1, config.max_k_value + 1)
    return {
        "letters": _letters(scored),
        "letters_effective": _letters(again),
        "f1_probe": dict(zip(probing["letter"], map(float, probing["f1_probe"]), strict=True)),
        "f1_by_k": {
            row["letter"]: [float(row[f"f1_sparse_sae_{k}"]) for k in ks] for _, row in probing.iterrows()
        },
        "features": {
            row["letter"]: row[f"sparse_sae_k_{ks[-1]}_feats"].tolist() for _, row in probing.iterrows()
        },
        "prompts": scored["prompt"].tolist(),
    }


def _letters(scored: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {
        row["letter"]: {
            "mean_absorption_fraction": float(row["mean_absorption_fraction"]),
            "full_absorption_rate": float(row["full_absorption_rate"]),
            "num_split_features": int(row["num_split_feats"]),
            "split_feats": [int(i) for i in row["split_feats"]],
        }
        for _, row in _aggregate_results_df(scored).iterrows()
    }


class Replayed:
    """In place of a language model: activations of words that it gave before, in their order."""

    tokenizer = "not needed"

    def __init__(self, x: Tensor, position: int) -> None:
        self.rest, self.position = x, position

    def to_tokens(self, _text: str) -> Tensor:
        return torch.zeros(1, 1)

    def run_with_cache(self, prompts: list[str], names_filter: list[str]) -> tuple[None, dict[str, Tensor]]:
        x, self.rest = self.rest[: len(prompts)], self.rest[len(prompts) :]
        return None, {names_filter[0]: x[:, None].expand(-1, -self.position, -1)}
