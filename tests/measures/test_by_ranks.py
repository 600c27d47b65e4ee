"""Batches that another rank sends: those of a single process bit for bit, in a fraction of the bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from measure_cases import EOS, N_WINDOWS, D, tree_sae
from saeforest.activations import ActivationReader
from saeforest.evaluation import read_windows
from saeforest.evaluation.by_ranks import as_batch, as_tensors, shared_tensors
from saeforest.lm import LanguageModel
from saeforest.measures import EvalBatch
from saeforest.saes import SAE, TopKConfig, TreeSAE, build
from saeforest.text import Tokens


def assert_same(ours: EvalBatch, theirs: EvalBatch) -> None:
    for name, expected in vars(theirs).items():
        found = getattr(ours, name)
        if isinstance(expected, Tensor):
            assert found.dtype == expected.dtype, name
            assert torch.equal(found, expected), name
    assert torch.equal(ours.code.values, theirs.code.values)
    assert torch.equal(ours.code.ids, theirs.code.ids)


@pytest.mark.parametrize("empty", [False, True])
def test_the_first_rank_has_the_batch_of_the_rank_that_read_it(
    empty: bool, sae: TreeSAE, reader: ActivationReader, tokens: Tokens
) -> None:
    if empty:  # nothing but special tokens
        tokens = Tokens(torch.full_like(tokens.ids, EOS), tokens.document_starts, tokens.names)
    view = read_windows(reader, tokens, torch.arange(N_WINDOWS), n_losses=N_WINDOWS // 2)
    assert (len(view.kept) == 0) == empty
    for losses in (False, True):
        batch = view.through(sae, losses=losses)
        own = as_tensors(batch, 2, own_target=False)
        found = as_batch(shared_tensors(view), own, sae)
        assert_same(found, batch)
        assert (found.losses is None) == (not losses)
        if batch.losses is not None:
            assert found.losses is not None
            assert found.spliced_level is not None
            assert batch.spliced_level is not None
            assert torch.equal(found.losses.spliced, batch.losses.spliced)
            assert torch.equal(found.spliced_level(1).spliced, batch.spliced_level(1).spliced)


def test_activations_are_sent_once_for_all_saes(reader: ActivationReader, tokens: Tokens) -> None:
    """And no reconstruction: these would be 2 D numbers for each SAE."""
    view = read_windows(reader, tokens, torch.arange(N_WINDOWS))
    sae = tree_sae()
    own = as_tensors(view.through(sae), 0, own_target=False)
    k = sum(sae.config.k_per_layer)
    assert {name: x.shape[1] for name, x in own.items()} == {"values": k, "ids": k}
    assert shared_tensors(view)["kept"].dtype == reader.lm.dtype


def test_the_target_of_a_transcoder_is_sent_too(lm: LanguageModel, tokens: Tokens) -> None:
    sites = lm.site("blocks.1.ln2.hook_normalized"), lm.site("blocks.1.hook_mlp_out")
    reader = ActivationReader(lm, sites[0], others=sites[1:], batch_size=5)
    sae: SAE = build(TopKConfig((24,), (3,), normalize_target="none"), D, d_out=D)
    view = read_windows(reader, tokens, torch.arange(5))
    batch = view.through(sae)
    found = as_batch(shared_tensors(view), as_tensors(batch, 0, own_target=view.target is not view.kept), sae)
    assert_same(found, batch)
    assert not torch.equal(found.x, view.kept)
