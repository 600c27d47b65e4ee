"""Cross-entropy: against the oracle, by level, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from measure_cases import (
    CONTEXT,
    LAYER,
    N_WINDOWS,
    SOURCE,
    ce,
    close,
    keep_by_hand,
    losses,
    measured,
)
from oracles import measures as oracle
from saeforest.activations import ActivationReader
from saeforest.evaluation import (
    SETS,
    MeasureOptions,
    evaluate,
)
from saeforest.lm import LanguageModel
from saeforest.measures.cross_entropy import CrossEntropyConfig
from saeforest.saes import TreeSAE
from saeforest.text import Tokens

# -- cross-entropy


@contextmanager
def replaced(lm: LanguageModel, change: Any) -> Iterator[None]:
    """A hook of the test's own on the block's output."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = lm.model.get_submodule(f"model.layers.{LAYER}").register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def means(lm: LanguageModel, tokens: Tokens, change: Any) -> tuple[float, float]:
    """Of loss and divergence, over the kept positions that have a next token."""
    keep, ids = keep_by_hand(tokens).numpy(), tokens.ids.long()
    with torch.no_grad(), replaced(lm, change):
        changed = lm.model(input_ids=ids).logits.double().numpy()
    with torch.no_grad():
        clean = lm.model(input_ids=ids).logits.double().numpy()
    rows = list(zip(clean, changed, ids.numpy(), keep, strict=True))
    losses = [oracle.next_token_losses(new, i)[k[:-1]] for _, new, i, k in rows]
    divergences = [oracle.divergences(old, new)[k] for old, new, _, k in rows]
    return float(np.concatenate(losses).mean()), float(np.concatenate(divergences).mean())


def test_cross_entropy_equals_the_oracle(
    sae: TreeSAE, lm: LanguageModel, reader: ActivationReader, tokens: Tokens
) -> None:
    keep = keep_by_hand(tokens)[..., None]
    found = evaluate(sae, reader, tokens, ["cross_entropy"], SOURCE, ce(10**6))["cross_entropy"]
    clean, _ = means(lm, tokens, lambda x: x)
    spliced, kl_spliced = means(lm, tokens, lambda x: torch.where(keep, sae(x), x))
    ablated, kl_ablated = means(lm, tokens, torch.zeros_like)
    assert len({round(loss, 3) for loss in (clean, spliced, ablated)}) == 3
    assert found.tokens == int(keep[:, :-1].sum())
    assert close(found.value["clean"], clean, 1e-5)
    assert close(found.value["spliced"], spliced, 1e-5)
    assert close(found.value["ablated"], ablated, 1e-5)
    assert close(found.value["kl_spliced"], kl_spliced, 1e-5)
    assert close(found.value["kl_ablated"], kl_ablated, 1e-5)
    assert close(found.value["kl_div_score"], 1 - kl_spliced / kl_ablated, 1e-3)
    assert close(found.value["ce_loss_score"], oracle.ce_loss_score(clean, spliced, ablated), 1e-3)


def test_cross_entropy_of_each_level_equals_the_oracle(
    sae: TreeSAE, lm: LanguageModel, reader: ActivationReader, tokens: Tokens
) -> None:
    keep = keep_by_hand(tokens)[..., None]
    options = MeasureOptions(ce_tokens=10**6, measures={"cross_entropy": CrossEntropyConfig(levels=True)})
    found = evaluate(sae, reader, tokens, ["cross_entropy"], SOURCE, options)["cross_entropy"]
    for level in range(3):

        def decoded(x: Tensor, level: int = level) -> Tensor:
            return torch.where(keep, sae.decode(*sae.encode_with_stats(x), level), x)

        spliced, kl_spliced = means(lm, tokens, decoded)
        assert close(found.value[f"spliced_level_{level}"], spliced, 1e-5)
        assert close(found.value[f"kl_spliced_level_{level}"], kl_spliced, 1e-5)
        clean, ablated = found.value["clean"] or 0, found.value["ablated"] or 0
        score = oracle.ce_loss_score(clean, spliced, ablated)
        assert close(found.value[f"ce_loss_score_level_{level}"], score, 1e-3)
    for name in ("spliced", "ce_loss_score", "kl_div_score"):
        assert close(found.value[f"{name}_level_2"], found.value[name] or 0, 1e-6)
    assert found.value["spliced_level_0"] != found.value["spliced_level_1"]


def test_ce_loss_score_vector(sae: TreeSAE) -> None:
    """Vector 10."""
    found = measured("cross_entropy", sae, [losses(3.0, 3.2, 10.0)])
    assert close(found.value["ce_loss_score"], 6.8 / 7)
    assert close(found.value["kl_div_score"], 0.9)
    assert found.tokens == 12


def test_ce_loss_score_is_null_where_ablation_costs_nothing(sae: TreeSAE) -> None:
    found = measured("cross_entropy", sae, [losses(3.0, 3.2, 3.0, kl=(0.0, 0.0))])
    assert found.value["kl_div_score"] is None
    assert found.value["ce_loss_score"] is None
    assert "ablated equals clean" in found.null["ce_loss_score"]
    assert close(found.value["spliced"], 3.2)


def test_losses_are_taken_on_whole_windows_of_the_first_tokens_only(
    sae: TreeSAE, reader: ActivationReader, tokens: Tokens
) -> None:
    """And the batches they end in, and where they end, change nothing."""
    keep = keep_by_hand(tokens)[:7, :-1]
    n = 6 * CONTEXT + 1
    records = []
    for reader.batch_size in (4, 5, 7):
        records.append(evaluate(sae, reader, tokens, SETS["fast"], SOURCE, ce(n)))
        assert records[-1]["cross_entropy"].tokens == int(keep.sum())
        assert records[-1]["reconstruction"].tokens == int(keep_by_hand(tokens).sum())
    first = replace(tokens, ids=tokens.ids[:7])
    expected = evaluate(sae, reader, first, ["cross_entropy"], SOURCE, ce(n))["cross_entropy"].value
    for record in records:
        for name, value in record["cross_entropy"].value.items():
            assert close(value, expected[name] or 0, 1e-4)
    none = evaluate(sae, reader, tokens, ["cross_entropy"], SOURCE, ce(0))["cross_entropy"]
    assert none.tokens == 0
    assert set(none.null.values()) == {"no token was measured"}


def test_clean_windows_cost_no_pass_of_their_own(
    sae: TreeSAE, lm: LanguageModel, reader: ActivationReader, tokens: Tokens
) -> None:
    reader.shared_blocks  # noqa: B018  # found by passes over short texts
    calls = {"model.layers.0.self_attn": 0, "model.norm": 0}

    def counted(name: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            calls[name] += 1

        return count

    with ExitStack() as hooks:
        for name in calls:
            hooks.enter_context(lm.model.get_submodule(name).register_forward_hook(counted(name)))
        evaluate(sae, reader, tokens, SETS["fast"], SOURCE, ce(5 * CONTEXT))
    assert calls["model.layers.0.self_attn"] == math.ceil(N_WINDOWS / 5)  # what is before the site runs once
    assert calls["model.norm"] == 3  # clean, spliced and ablated, of the one batch with losses
