"""Words, their first letters, and their activations: the data of the measure `absorption` (docs/spec/absorption.md).

A word is any entry of the tokenizer's vocabulary made of English letters, with or without a space in front. Its
activation is read at its last token, in a prompt with ten examples of words and their first letters:

    \\n{example} has the first letter: X \\n ... \\n{word}

The question " has the first letter:" is left out after the word itself, because what follows cannot change the word's
activation. The ground-truth probe predicts the letter from the scores s = x W + b:

    loss = mean over words and letters of BCE(s, y), with positives weighted by n_neg / n_pos

It is trained with Adam; the learning rate falls exponentially from 1e-2 to 1e-5, once an epoch. All randomness comes
from the seed. The words are read once for a language model and site, and shared by all SAEs measured there.
"""

from __future__ import annotations

import math
import random
import re
import string
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor

from ..activations import ActivationReader
from ..activations.reader import all_finite
from ..errors import InputError
from ..hf_types import PreTrainedTokenizerBase
from ..kernels import sparse_decode
from ..lm import LanguageModel, Site
from ..output import note
from ..progress import progress
from ..seeds import seeded
from ..sparse_code import SparseCode
from ..text import bos_before, encode

LETTERS = string.ascii_lowercase
_QUESTION = " has the first letter:"
_TEST_SHARE = 0.2
_LR, _LAST_LR = 1e-2, 1e-5
_WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class FirstLetterConfig:
    """Which words are read, in which prompts, and how the ground-truth probe is trained."""

    seed: int = 42
    """Random seed for choosing and splitting the words, their examples, and training the probes."""
    words: int | None = 5000
    """Maximum number of words, spread evenly over the letters as far as each has enough; None for all words."""
    icl: int = 10
    """Number of in-context examples before each word."""
    epochs: int = 50
    """Number of training epochs for each probe."""
    batch: int = 64
    """Batch size, in words, for training the ground-truth probe."""
    bos: Literal["as_run", "always"] = "as_run"
    """Whether each prompt starts with BOS. as_run: if the run's texts do (text.bos); always: if the tokenizer has a
    BOS, as in TransformerLens, even for an SAE trained without."""

    def __post_init__(self) -> None:
        for name in ("icl", "epochs", "batch"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        least = self.least_words
        self._check("words", self.words is None or self.words >= least, f"{least} or more, or None for all")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"absorption.{name} = {getattr(self, name)}: expected {expected}")

    @property
    def reading(self) -> FirstLetterConfig:
        """The part of a measure's settings that decides which words are read, and how."""
        return FirstLetterConfig(**{f.name: getattr(self, f.name) for f in fields(FirstLetterConfig)})

    @property
    def least_words(self) -> int:
        """Minimum number of words: with fewer, the held-out words would not fill the examples of one prompt."""
        return math.ceil((self.icl + 1) / _TEST_SHARE)


@dataclass(frozen=True, eq=False)
class Words:
    """Words, their first letters (0 to 25), and the activations at their last tokens, on the CPU."""

    words: list[str]
    letter: Int[Tensor, "n"]
    x: Float[Tensor, "n d_in"]


class LetterProbe(NamedTuple):
    """A linear probe for each of the 26 letters. A score above 0 means that the word begins with the letter."""

    weight: Float32[Tensor, "width 26"]
    bias: Float32[Tensor, "26"]

    def scores(self, inputs: Float[Tensor, "n width"] | SparseCode) -> Float32[Tensor, "n 26"]:
        """Scores of activations or codes for each letter."""
        if isinstance(inputs, SparseCode):
            return sparse_decode(inputs.values, inputs.ids, self.weight) + self.bias
        return inputs.float() @ self.weight + self.bias

    @property
    def directions(self) -> Float64[Tensor, "26 width"]:
        """Unit direction of each letter in the space of the inputs."""
        return F.normalize(self.weight.T.double())


@dataclass(frozen=True, eq=False)
class FirstLetters:
    """The data that the measure needs from a language model, the same for every SAE.

    train:      words that the probes are trained on.
    test:       held-out words.
    probe:      the ground-truth probe, trained on `train`.
    f1:         `[26]` its F1 on `test` for each letter.
    positives:  the words of `test` whose letter the probe recognizes, read again after examples from all words.
    resid_post: activations of the same tokens as `positives.x` in the residual stream after the site's block; None if
                the site is there already, or names no block.
    """

    train: Words
    test: Words
    probe: LetterProbe
    f1: Float64[Tensor, "26"]
    positives: Words
    resid_post: Float[Tensor, "n d_in"] | None


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words of a tokenizer in the order of their ids, each with the space in front of it if it has one."""
    ids = list(range(len(tokenizer)))
    # SentencePiece decoders drop the space before the first word of a text, but the token still shows it.
    spaced = [str(token).startswith("▁") for token in tokenizer.convert_ids_to_tokens(ids)]
    decoded = tokenizer.batch_decode([[i] for i in ids])
    entries = [f" {w}" if s and w[:1] != " " else w for w, s in zip(decoded, spaced, strict=True)]
    return list(dict.fromkeys(w for w in entries if w.isascii() and w.removeprefix(" ").isalpha()))


def letters_of(words: Sequence[str]) -> Int[Tensor, "n"]:
    """The first letter of each word, 0 for A to 25 for Z."""
    return torch.tensor([LETTERS.index(word.lstrip()[0].lower()) for word in words], dtype=torch.int64)


def draw(words: Sequence[str], n: int | None, rng: random.Random) -> list[str]:
    """Draw `n` words (None: all) in random order, equally many for each letter as far as it has enough.

    A plain draw of a few thousand words would hold out one or two for X and Z, whose probes' F1 would mean little.
    """
    found = rng.sample(words, len(words))
    if n is None or n >= len(found):
        return found
    seen: Counter[int] = Counter()
    rank: dict[str, int] = {}
    for word, letter in zip(found, letters_of(found).tolist(), strict=True):
        rank[word] = seen[letter]
        seen[letter] += 1
    found = sorted(found, key=rank.__getitem__)[:n]
    rng.shuffle(found)
    return found


def prompts(words: Sequence[str], pool: Sequence[str], icl: int, rng: random.Random) -> list[str]:
    """A prompt for each word: `icl` other words of the pool with their letters, then the word.

    The pool has more than `icl` words.
    """

    def prompt(word: str) -> str:
        # Draw one more than needed, because the word itself may be among them.
        examples = [other for other in rng.sample(pool, icl + 1) if other != word][:icl]
        lines = [f"{example}{_QUESTION} {example.lstrip()[0].upper()}" for example in examples]
        return "\n".join(["", *lines, word])

    return [prompt(word) for word in words]


def read_last(
    lm: LanguageModel, site: Site, texts: Sequence[str], batch_size: int, *, bos_id: int | None = None
) -> Float[Tensor, "n d_in"]:
    """The activations at the last token of each text, on the CPU, in the model's dtype.

    bos_id: token to put in front of each text, if any.

    Raises InputError for a text longer than the model's context, and for activations that are not finite.
    """
    bos = [] if bos_id is None else [bos_id]
    ids = [bos + text for text in encode(lm.tokenizer, texts)]
    longest = max(map(len, ids), default=0)
    if lm.max_context is not None and longest > lm.max_context:
        raise InputError(
            f"absorption: prompts of up to {longest} tokens, but {lm.name} reads at most {lm.max_context}; set "
            "absorption.icl to fewer examples, or leave out the measure"
        )
    # Texts of equal length are read together, so that none needs padding.
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, text in enumerate(ids):
        by_length[len(text)].append(i)
    found: dict[int, Tensor] = {}
    with progress(f"words at {site.name}", sum(map(len, ids))) as advance:
        for length, same in by_length.items():
            for start in range(0, len(same), batch_size):
                batch = same[start : start + batch_size]
                x = lm.activations(torch.tensor([ids[i] for i in batch]), site)
                found |= zip(batch, x[:, -1].cpu(), strict=True)
                advance(length * len(batch))
    x = torch.stack([found[i] for i in range(len(ids))])
    if not all_finite(x):
        raise InputError(f"activations at {site.name} of {lm.name}: NaN or infinite; set lm.dtype to float32")
    return x


def train_probe(
    inputs: Float[Tensor, "n width"] | SparseCode,
    letter: Int[Tensor, "n"],
    *,
    width: int,
    batch: int,
    epochs: int,
    weight_decay: float = _WEIGHT_DECAY,
    l1: float = 0.0,
    seed: int,
) -> LetterProbe:
    """Train 26 logistic probes on activations, or on a code of `width` features, on the CPU.

    weight_decay: L2 penalty, added to the gradient as in Adam.
    l1:           weight of the L1 penalty: the sum of absolute weights, averaged over letters.
    """
    generator = seeded(seed, "letter probe")
    y = F.one_hot(letter, len(LETTERS)).float()
    positive = y.sum(0)
    pos_weight = (len(y) - positive) / positive.clamp(min=1)
    bound = 1 / math.sqrt(width)
    weight = torch.empty(width, len(LETTERS)).uniform_(-bound, bound, generator=generator).requires_grad_()
    bias = torch.empty(len(LETTERS)).uniform_(-bound, bound, generator=generator).requires_grad_()
    probe = LetterProbe(weight, bias)
    optimizer = torch.optim.Adam(probe, lr=_LR, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, (_LAST_LR / _LR) ** (1 / epochs))
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).split(batch):
            some = inputs[rows] if isinstance(inputs, Tensor) else _rows(inputs, rows)
            loss = F.binary_cross_entropy_with_logits(probe.scores(some), y[rows], pos_weight=pos_weight)
            if l1:
                loss = loss + l1 * weight.abs().sum(0).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return LetterProbe(weight.detach(), bias.detach())


def _rows(code: SparseCode, rows: Int[Tensor, "m"]) -> SparseCode:
    return SparseCode(code.values[rows], code.ids[rows])


def f1_scores(
    predicted: Bool[Tensor, "n classes"], truth: Bool[Tensor, "n classes"]
) -> Float64[Tensor, "classes"]:
    """F1 = 2 TP / (2 TP + FP + FN) of each class; 0 where that is 0/0."""
    both, either = (predicted & truth).sum(0), predicted.sum(0) + truth.sum(0)
    return 2 * both.double() / either.clamp(min=1)


class TooFewWords(InputError):
    """The tokenizer has too few words of English letters to read."""

    def __init__(self, model: str, found: int, least: int) -> None:
        super().__init__(
            f"the tokenizer of {model} has {found} words of English letters: expected {least} or more"
        )
        self.found, self.least = found, least


def resid_post(site: str) -> str | None:
    """Hook name of the residual stream after the block of the hook `site`; None if `site` is a module path."""
    match = re.fullmatch(r"(blocks\.\d+\.hook_)\w+", site)
    return match and f"{match[1]}resid_post"


def first_letters(reader: ActivationReader, config: FirstLetterConfig) -> FirstLetters:
    """Read the words at the reader's site, and train the ground-truth probe on their activations.

    No token is excluded. Raises TooFewWords if the vocabulary has fewer than `config.least_words` words.
    """
    lm, site = reader.lm, reader.site
    words = vocabulary(lm.tokenizer)
    if len(words) < config.least_words:
        raise TooFewWords(lm.name, len(words), config.least_words)
    bos_id = reader.bos_id
    if bos_id is None and config.bos == "always" and lm.tokenizer.bos_token_id is not None:
        bos_id = bos_before(lm.tokenizer, "yes", lm.name)
        note("absorption.bos = always: prompts begin with BOS, which the SAE's training text never contained")
    rng = random.Random(f"first letters {config.seed}")
    words = draw(words, config.words, rng)
    n_test = round(_TEST_SHARE * len(words))

    def read(some: list[str], pool: list[str], *sites: Site) -> list[Tensor]:
        texts = prompts(some, pool, config.icl, rng)
        return [read_last(lm, at, texts, reader.batch_size, bos_id=bos_id) for at in sites]

    test, train = (Words(w, letters_of(w), *read(w, w, site)) for w in (words[:n_test], words[n_test:]))
    probe = train_probe(
        train.x.float(),
        train.letter,
        width=train.x.shape[1],
        batch=config.batch,
        epochs=config.epochs,
        seed=config.seed,
    )
    predicted, truth = probe.scores(test.x) > 0, F.one_hot(test.letter, len(LETTERS)).bool()
    seen = (predicted & truth).any(1).nonzero().flatten()
    positive, letter = [test.words[i] for i in seen.tolist()], test.letter[seen]
    behind = resid_post(site.name)
    sites = [site] if behind in (None, site.name) else [site, lm.site(behind)]
    x = read(positive, words, *sites) if positive else [test.x[:0]] * len(sites)
    return FirstLetters(
        train=train,
        test=test,
        probe=probe,
        f1=f1_scores(predicted, truth),
        positives=Words(positive, letter, x[0]),
        resid_post=x[1] if len(x) > 1 else None,
    )
