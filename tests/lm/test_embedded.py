"""The embedded language model."""

from __future__ import annotations

import pytest
import torch

from saeforest.lm import LanguageModel, load_lm
from saeforest.lm import gguf as gguf_module

TEXT = (
    "The Roman Empire was one of the largest empires of the ancient world. At its height, in the second "
    "century, it covered the lands around the Mediterranean Sea, from Britain to Egypt. Its capital was Rome, "
    "and its people spoke Latin in the west and Greek in the east."
)


@pytest.mark.model
def test_embedded_model(smollm2: LanguageModel) -> None:
    lm = smollm2
    ids = torch.tensor([lm.tokenizer.encode(TEXT)])
    site = lm.site("blocks.15.hook_resid_post")
    assert (lm.n_layers, lm.site_width(site), lm.eos_id) == (30, 576, 2)
    assert lm.special_ids.tolist() == list(range(17))
    norms = lm.activations(ids, site)[0].norm(dim=-1)
    assert norms[0] > 50 * norms[1:].max()
    assert 1 < lm.token_losses(ids).mean() < 4
    assert lm.token_losses(ids, {site: torch.zeros_like}).mean() > 8


@pytest.mark.model
def test_embedded_tokenizer_takes_digits_one_by_one(smollm2: LanguageModel) -> None:
    pieces = ["In", "Ġ", "1", "9", "8", "4", ",", "Ġ", "3", "0", "Ġpeople"]
    assert smollm2.tokenizer.tokenize("In 1984, 30 people") == pieces


@pytest.mark.model
def test_embedded_model_comes_out_of_the_cache_as_it_went_in(
    smollm2: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_module, "_unpack", None)  # not needed a second time
    text = TEXT + " 12 eggs, 350 g of flour; x = [1024, 2048]\n\t<|im_end|> été 北京"
    ids = smollm2.tokenizer.encode(text)
    again = load_lm("smollm2-135m", dtype=torch.bfloat16)
    assert again.tokenizer.encode(text) == ids
    assert again.tokenizer.decode(ids) == text
    assert torch.equal(again.special_ids, smollm2.special_ids)
    batch = torch.tensor([ids])
    assert again.dtype == torch.bfloat16
    torch.testing.assert_close(
        again.token_losses(batch).mean(), smollm2.token_losses(batch).mean(), rtol=0.01, atol=0
    )
