"""A small SAE on text of bytes with its index, an index and a forest made by hand, and a tokenizer of bytes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from saeforest.activations import ActivationBatch
from saeforest.explore import Index, build_index, telling_families
from saeforest.explore.index import About
from saeforest.explore.index.form import unused
from saeforest.explore.measuring.counts import Counts
from saeforest.saes import TreeConfig, TreeSAE
from saeforest.sparse_code import SparseCode
from saeforest.structure.directions import RIDGE
from saeforest.structure.forest import Forest
from saeforest.text import Tokens

EOS = 256
SIZES, K = (6, 10, 14), (2, 2, 2)
D, CONTEXT, WINDOWS, MIN_COUNT, N_CONTEXTS = 12, 8, 60, 20, 3


class Ungated(TreeSAE):
    """Children fire with or without their parents, as in an SAE whose forest was inferred."""

    def encode_normalized(self, u: Tensor, precision: torch.dtype) -> SparseCode:
        top = (u @ self.encoder.T).topk(sum(K))
        return SparseCode(top.values.relu(), top.indices)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and an end-of-text token."""
    letters = {letter: index for index, letter in enumerate(byte_letters())}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def byte_letters() -> list[str]:
    """The letter that spells each byte in a byte-level vocabulary (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def text_tokens(*documents: str, context: int = 64) -> Tokens:
    """Documents as bytes, each closed; filled up to whole windows with a document of full stops."""
    ids: list[int] = []
    starts = []
    for document in documents:
        starts.append(len(ids))
        ids += [*document.encode(), EOS]
    if missing := -len(ids) % context:
        starts.append(len(ids))
        ids += [ord(".")] * missing
    names = tuple(f"doc{i}" for i in range(len(starts)))
    return Tokens(torch.tensor(ids, dtype=torch.int32).view(-1, context), torch.tensor(starts), names)


def tiny_sae(kind: type[TreeSAE] = TreeSAE) -> TreeSAE:
    sae = kind(TreeConfig(layer_sizes=SIZES, k_per_layer=K), D, seed=3)
    with torch.no_grad():
        sae.b_dec.copy_(torch.linspace(-0.3, 0.3, D))
        sae.encoder[1] = 0  # never fires
    sae.metadata = {"model_name": "tiny", "hook_name": "blocks.0.hook_resid_post"}
    return sae


class World:
    def __init__(self, kind: type[TreeSAE], documents: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.sae = tiny_sae(kind)
        n = WINDOWS * CONTEXT
        starts = torch.cat(
            [torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(n - 1, generator=generator)]
        )
        starts = starts[:documents].sort().values
        ids = torch.randint(0, 256, (WINDOWS, CONTEXT), generator=generator, dtype=torch.int32)
        self.tokens = Tokens(ids, starts, tuple(map(str, range(documents))))
        self.rows = torch.arange(n)[torch.arange(n) % CONTEXT > 0][
            torch.randperm(n - WINDOWS, generator=generator)
        ]
        mixing = torch.randn(D, D, generator=generator)
        self.x = torch.randn(len(self.rows), D, generator=generator) @ mixing + 1
        self.sizes = [1, 100, len(self.rows) - 101]
        with torch.no_grad():
            codes = [self.sae.encode(x).dense(self.sae.d_sae) for x in self.x.split(self.sizes)]
        self.f = torch.cat(codes).double()
        self.fires = self.f > 1e-3
        self.index = self.build()

    def build(self, begin: Callable[[Counts], None] = lambda counts: None) -> Index:
        batches = map(ActivationBatch, self.x.split(self.sizes), self.rows.split(self.sizes))
        return build_index(
            self.sae,
            self.sae.forest,
            batches,
            self.tokens,
            total=len(self.rows),
            n_contexts=N_CONTEXTS,
            min_count=MIN_COUNT,
            begin=begin,
        )


def made_index(tokens: Tokens, rows: list[list[int]], **columns: list) -> Index:
    """An index in which every feature fires on 30 of 1,000 tokens and every edge passes, but for `columns`.

    Whatever is not given has its places unused.
    """
    f = len(rows)
    values: dict[str, list] = {
        "n_fired": [30] * f,
        "n_with_parent": [30] * f,
        "value_sum": [30.0] * f,
        "value_max": [2.0] * f,
        "top_value": [[2.0 - 0.5 * i for i in range(len(r))] for r in rows],
        "top_row": rows,
        "cos_child": [0.5] * f,
        "cos_parent": [0.5] * f,
        "rank_child": [1] * f,
        "rank_parent": [2] * f,
    }
    about = About("m", "s", 1000, 20, "window", RIDGE, "")
    given = {name: torch.tensor(v) for name, v in (values | columns).items()}
    return Index.of_tensors(about, tokens, unused(f, given["top_row"].shape[1]) | given)


#     0        1       2      the first layer
#    3 4 5    6 7     8 9     the second
#    10 11                    below 3
FOREST = Forest(torch.tensor([-1, -1, -1, 0, 0, 0, 1, 1, 2, 2, 3, 3]), (3, 7, 2))
ROOTS = {"rank_parent": [0] * 3 + [2] * 9}


def hand_index(**columns: list) -> Index:
    tokens = text_tokens("abcdefghijklmnopqrstuvwxyz" * 4)
    return made_index(tokens, [[i] for i in range(12)], **(ROOTS | columns))


def parents(index: Index, n: int = 10) -> list[int]:
    return [family.parent for family in telling_families(index, FOREST, n).shown]
