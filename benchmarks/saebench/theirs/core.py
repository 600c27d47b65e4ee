"""SAEBench's core evaluation, as its command line sets it, on given tokens."""

from __future__ import annotations

from typing import Any

from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import run_evals
from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
from torch import Tensor
from transformer_lens import HookedTransformer

from .adapter import ForestSAE


class LocalTokens:
    """What of an ActivationsStore the evaluation uses: batches of windows, always the same ones in order."""

    def __init__(self, ids: Tensor) -> None:
        self.ids, self.next = ids, 0
        self.context_size = ids.shape[1]

    def get_batch_tokens(self, n: int) -> Tensor:
        batch = self.ids[self.next : self.next + n]
        self.next += n
        return batch

    def reset_input_dataset(self) -> None:
        self.next = 0


def evaluate(model: HookedTransformer, sae: ForestSAE, ids: Tensor, batch: int) -> dict[str, Any]:
    """Every scalar, by its name there."""
    n_batches = len(ids) // batch
    config = CoreEvalConfig(
        model_name=sae.cfg.model_name,
        batch_size_prompts=batch,
        n_eval_reconstruction_batches=n_batches,
        n_eval_sparsity_variance_batches=n_batches,
        exclude_special_tokens_from_reconstruction=True,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        context_size=ids.shape[1],
    )
    load_and_format_sae("saeforest", sae, "cpu")  # adds to its configuration what the evaluation asks for
    tokenizer = model.tokenizer
    assert tokenizer is not None
    ignored = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    groups, features = run_evals(sae, LocalTokens(ids), model, config, ignore_tokens=ignored)  # pyright: ignore[reportArgumentType]
    scalars = {name: value for group in groups.values() for name, value in group.items()}
    cosines = features["max_decoder_cosine_sim"]
    return scalars | {"average_max_decoder_cosine_sim": sum(cosines) / len(cosines)}
