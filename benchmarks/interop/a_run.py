"""A run on a tiny language model with random weights, for exports that need a text: some seconds on two cores."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from saeforest.config import ActivationConfig, LMConfig, OptimConfig, TextConfig, TrainConfig
from saeforest.saes import TreeConfig
from saeforest.training import run_training

_WORDS = (
    "a",
    "the",
    "cat",
    "dog",
    "sat",
    "ran",
    "home",
    "on",
    "moon",
    "red",
    "river",
    "12",
    "7",
    "café",
    "forest",
)


def make_run(folder: Path) -> Path:
    """Train a small Tree SAE in `folder`; returns the run's folder."""
    config = TrainConfig(
        model=str(_model(folder / "model")),
        site="blocks.1.hook_resid_post",
        data=str(_text(folder / "text")),
        tokens=12_800,
        device="cpu",
        lm=LMConfig(dtype="float32", batch_size=8),
        text=TextConfig(context=64, held_out=0.1),
        activations=ActivationConfig(store="memory"),
        sae=TreeConfig((8, 40, 64), (3, 2, 2)),
        optim=OptimConfig(lr=3e-3, batch_size=256, precision="float32"),
    )
    run_training(config, folder / "run")
    return folder / "run"


def _model(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    logging.disable_progress_bar()
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        bos_token_id=None,
        eos_token_id=256,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and an end-of-text token."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    vocabulary = {chr(byte) if byte in plain else chr(next(others)): byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def _text(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rng = random.Random(0)
    for i in range(60):
        sentences = (" ".join(rng.choices(_WORDS, k=rng.randint(4, 12))) for _ in range(12))
        (folder / f"{i}.txt").write_text(". ".join(sentences), encoding="utf-8")
    return folder
