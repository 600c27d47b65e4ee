"""Every architecture, saved and loaded: its sites against values taken elsewhere, its tokenizer and its limits.

Ten of them belong to the ordinary tests, all of them to `make test-models`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers.utils import logging

from architecture_cases import ARCHITECTURES, CONTEXT, LAYERS, ROWS, WIDTH, Architecture
from llama_cases import byte_tokenizer
from saeforest.errors import InputError
from saeforest.lm import LanguageModel, load_lm
from saeforest.lm.parity import parity
from saeforest.lm.tokenizer import difference

IDS = torch.randint(0, ROWS - 1, (2, 9), generator=torch.Generator().manual_seed(1))
HOOKS = ("resid_pre", "attn_out", "mlp_out", "resid_post")


def read(lm: LanguageModel, block: int, hook: str) -> Tensor:
    return lm.activations(IDS, lm.site(f"blocks.{block}.hook_{hook}"))


def loaded(architecture: Architecture, folder: Path) -> tuple[LanguageModel, Tensor]:
    """The model as load_lm reads it from its files, and the logits that it had before it was saved."""
    model = architecture.make()
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
    with torch.no_grad():
        return load_lm(str(folder)), model(input_ids=IDS, use_cache=False).logits


@pytest.mark.filterwarnings("ignore")  # of transformers, about kernels that are not installed
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, id=a.name, marks=() if a.always else pytest.mark.models) for a in ARCHITECTURES],
)
def test_architecture(architecture: Architecture, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm, expected = loaded(architecture, tmp_path)
    said = capsys.readouterr().err  # some classes of transformers read no tokenizer of bytes as its file says
    assert said == "" or (said.count("\n") == 1 and "using the file" in said)
    torch.testing.assert_close(lm.logits(IDS), expected)
    check_limits(lm, architecture)
    assert difference(lm.tokenizer, Tokenizer.from_file(str(tmp_path / "tokenizer.json"))) is None
    check_stream(lm, architecture)
    check_parts(lm, architecture)
    check_inputs(lm, architecture)
    check_between(lm, architecture)
    check_replacement(lm, architecture, expected)
    assert parity(lm)["sums_hold"] is (architecture.adds_up if architecture.parts else None)


def check_limits(lm: LanguageModel, architecture: Architecture) -> None:
    assert (lm.n_layers, lm.vocab_size, lm.max_context) == (LAYERS, ROWS, architecture.context)
    lm.logits(torch.zeros(1, CONTEXT, dtype=torch.int64))
    if architecture.context is not None:
        with pytest.raises(InputError, match=f"at most {CONTEXT}"):
            lm.logits(torch.zeros(1, CONTEXT + 1, dtype=torch.int64))
    with pytest.raises(InputError, match="has no row"):
        lm.logits(torch.tensor([[ROWS]]))


def check_stream(lm: LanguageModel, architecture: Architecture) -> None:
    with torch.no_grad():
        hidden = lm.model(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states
    first = 1 if architecture.shifted else 0
    for i in range(first, LAYERS):
        torch.testing.assert_close(read(lm, i, "resid_pre"), hidden[i - first], rtol=0, atol=0)
    for i in range(LAYERS - 1):
        torch.testing.assert_close(read(lm, i, "resid_post"), read(lm, i + 1, "resid_pre"), rtol=0, atol=0)
    assert lm.site_width(lm.site("blocks.1.hook_resid_post")) == WIDTH


def check_parts(lm: LanguageModel, architecture: Architecture) -> None:
    if not architecture.parts:
        with pytest.raises(InputError, match="no module known for this hook") as info:
            read(lm, 0, "attn_out")
        assert "\n" not in str(info.value)
    elif architecture.adds_up:
        for i in range(LAYERS):
            pre, attn, mlp, post = (read(lm, i, hook) for hook in HOOKS)
            assert min(attn.abs().max(), mlp.abs().max()) > 1e-6
            torch.testing.assert_close(pre + attn + mlp, post)


def moved(lm: LanguageModel, put: str, read: str) -> tuple[Tensor, Tensor]:
    """What is read at a hook of block 1 when another holds what it holds in other texts; and what is read in those."""
    others = IDS.flip(0)
    there = lm.activations(others, f"blocks.1.{put}")
    with lm.hooked({f"blocks.1.{put}": lambda _: there}):
        found = lm.activations(IDS, f"blocks.1.{read}")
    return found, lm.activations(others, f"blocks.1.{read}")


def check_inputs(lm: LanguageModel, architecture: Architecture) -> None:
    """What attention and MLP read decides what they write."""
    ways = [("ln1.hook_normalized", "hook_attn_out"), ("ln2.hook_normalized", "hook_mlp_out")]
    if architecture.projection:
        ways.append(("attn.hook_z", "hook_attn_out"))
    for put, read in ways if architecture.parts else ():
        torch.testing.assert_close(*moved(lm, put, read))
        assert lm.site_width(lm.site(f"blocks.1.{put}")) >= WIDTH
    if architecture.parts:
        assert (
            lm.site("blocks.1.mlp.hook_in").module_path == lm.site("blocks.1.ln2.hook_normalized").module_path
        )
        assert (
            lm.site("blocks.1.attn.hook_in").module_path
            == lm.site("blocks.1.ln1.hook_normalized").module_path
        )


def check_between(lm: LanguageModel, architecture: Architecture) -> None:
    """The stream between attention and MLP, which decides all that comes behind it."""
    if architecture.parts and architecture.adds_up and not architecture.parallel:
        for i in range(LAYERS):
            pre, attn, mid, mlp, post = (
                read(lm, i, hook) for hook in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
            )
            torch.testing.assert_close(pre + attn, mid)
            torch.testing.assert_close(mid + mlp, post)
        torch.testing.assert_close(*moved(lm, "hook_resid_mid", "hook_resid_post"))
    elif architecture.parallel or not architecture.parts:
        with pytest.raises(
            InputError, match="in parallel" if architecture.parallel else "no module known"
        ) as info:
            read(lm, 1, "resid_mid")
        assert "\n" not in str(info.value)


def check_replacement(lm: LanguageModel, architecture: Architecture, expected: Tensor) -> None:
    for hook in HOOKS:
        known = architecture.parts or not hook.endswith("out")
        if known:
            site = lm.site(f"blocks.1.hook_{hook}")
            torch.testing.assert_close(lm.logits(IDS, {site: torch.clone}), expected)
            if architecture.adds_up:
                assert not torch.allclose(lm.logits(IDS, {site: torch.zeros_like}), expected, atol=1e-6)


def test_all_are_there() -> None:
    assert len(ARCHITECTURES) == 62
    assert len({a.name for a in ARCHITECTURES}) == 62
    assert sum(a.always for a in ARCHITECTURES) == 10
