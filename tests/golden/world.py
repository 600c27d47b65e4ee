"""What the golden runs read: a tiny random language model, some text, and activations harvested from these.

`python world.py FOLDER [COMMANDS]`, in the environment that fixes all bits. Then it runs the commands as `commands.py`.
"""

from __future__ import annotations

import json
import random
import sys
from itertools import accumulate
from pathlib import Path

import torch
from commands import run  # beside this script
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOPICS, WORDS, DOCUMENTS, LENGTH = 12, 10, 220, 60

HARVEST = [
    "--site", "blocks.1.hook_resid_post", "--tokens", "6144", "--device", "cpu", "--lm.dtype", "float32",
    "--text.context", "32", "--text.held-out", "0.2",
]  # fmt: skip


def words_of(topic: int) -> list[str]:
    return [f"t{topic}w{i}" for i in range(WORDS)]


def document(rng: random.Random) -> str:
    """Two topics taking turns; both of topics and of words some are far more frequent than others."""
    topics = rng.choices(range(TOPICS), [1 / (t + 1) for t in range(TOPICS)], k=2)
    weights = list(accumulate(1 / (i + 1) for i in range(WORDS)))
    halves = [rng.choices(words_of(topic), cum_weights=weights, k=LENGTH // 2) for topic in topics]
    return " ".join(word for pair in zip(*halves, strict=True) for word in pair)


def save_text(folder: Path) -> None:
    rng = random.Random(0)
    folder.mkdir()
    lines = [json.dumps({"text": document(rng)}) + "\n" for _ in range(DOCUMENTS)]
    (folder / "documents.jsonl").write_text("".join(lines), encoding="utf-8")


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    # saeforest refuses a tokenizer that knows not one word of English.
    vocabulary = ["<unk>", "<eos>", "the", *(word for topic in range(TOPICS) for word in words_of(topic))]
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)


def main(folder: Path, commands: str = "[]") -> None:
    save_text(folder / "text")
    save_model(folder / "model")
    model, data, out = (str(folder / name) for name in ("model", "text", "store"))
    run([["harvest", "--model", model, "--data", data, "--out", out, *HARVEST], *json.loads(commands)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
