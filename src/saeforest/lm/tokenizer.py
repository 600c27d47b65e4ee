"""Loading a tokenizer with transformers, and checking it against its tokenizer.json.

transformers rebuilds some tokenizers from the name of their class and ignores how tokenizer.json splits text, so that
the token ids differ from those that the model was trained on. The tokenizers library reads the file as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from saeforest.lm.hub import first_line
from saeforest.lm.weights import read_object
from saeforest.output import note

TOKENIZER_FILE, _SETTINGS, _SPECIALS_FILE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MOST_ADDED = 200  # maximum number of added tokens to compare

# Texts that may be split wrongly: digits, spaces, line breaks, signs, contractions, code, scripts, accents, emoji.
SAMPLES = (
    "the cat sat on the mat and the dog ran home",
    "The quick brown fox, it's said, won't jump over I'LL or we've.",
    "In 2023 we wrote 650841823 lines; 3.14159, 1,000,000 and 0x1F.",
    "1 12 123 1234 12345 123456 ½ ² Ⅷ ٣٤٥",
    " leading", "  two", "   three    four     five ", "trailing   ", "a\tb\t\tc", "\n", "a\nb\n\nc\n\n\nd\r\ne\r",
    " \n  \n\t\n x",
    "def f(x: int) -> str:\n    return f\"{x!r:>8}\"  # 100%\n\n\nif __name__ == '__main__':\n\tprint(f(-1))",
    "for (int i=0;i<10;i++){a[i]+=b->c&&d||!e;} // https://example.org/?q=a_b&c=%20#z",
    "camelCase PascalCase snake_case SCREAMING_SNAKE kebab-case XMLHttpRequest2",
    "$5.00 (50%) [a] {b} <c> @d #e ~f ^g `h` \\i |j \"k\" 'l' ... !? -- ___ ***",
    "été naïve Straße ÅNGSTRÖM e\u0301 n\u0303 ﬁ ﬀ",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم नमस्ते दुनिया",
    "北京欢迎你2023年。東京タワーへ行きます。 안녕하세요 세계 ไทย ລາວ ខ្មែរ မြန်မာ",
    "😀 👩\u200d👩\u200d👧 🇩🇪 ❤\ufe0f ✓ → ∑ ≤ €",
    "\u00a0\u2003\u3000 \u200b \ufeff x", "\x00\x07\x1b[0m", "“quotes” ‘single’ – — …",
    "<|endoftext|> </s> <s> <unk> <pad> [CLS] [SEP] <|im_start|>user <0x0A> ▁ Ġ",
)  # fmt: skip


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a folder. Raises ValueError if its files are missing, damaged or inconsistent."""
    found: PreTrainedTokenizerBase | None = None
    cause = ""
    try:
        found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises anything
        cause = first_line(error)
    if not (folder / TOKENIZER_FILE).is_file():
        if found is None:
            raise ValueError(f"no {TOKENIZER_FILE}, and no other tokenizer can be read: {cause}")
        if not _knows_text(found):
            raise ValueError(
                f"no tokenizer: expected {TOKENIZER_FILE}, or the files of an older tokenizer, next to config.json"
            )
        return found
    by_file = _tokenizer_of(folder / TOKENIZER_FILE)
    if found is not None and difference(found, by_file) is None:
        return _checked(found)
    own = _own(folder, by_file, found)
    if (text := difference(own, by_file)) is not None:
        raise ValueError(
            f"{TOKENIZER_FILE}: the special tokens in the other files change how {text!r} is read; copy files that "
            "belong together"
        )
    if found is None:
        note(f"{folder}: transformers can't read the tokenizer ({cause}); using {TOKENIZER_FILE} alone")
    else:
        note(
            f"{folder}: transformers' {type(found).__name__} splits text differently from {TOKENIZER_FILE}; using the "
            "file"
        )
    return _checked(own)


def difference(tokenizer: PreTrainedTokenizerBase, by_file: Tokenizer) -> str | None:
    """A text that the two tokenizers read differently; None if none was found."""
    added = list(by_file.get_added_tokens_decoder().values())[:_MOST_ADDED]
    texts = [*SAMPLES, *(f"a {token.content} b{token.content}c" for token in added)]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        for plain in (False, True):  # whether special tokens spelled out in a text are read as plain text
            by_file.encode_special_tokens = plain
            for text in texts:
                theirs = by_file.encode(text, add_special_tokens=False).ids
                if _ids(tokenizer, text, plain) != theirs:
                    return text
                if isinstance(backend, Tokenizer) and backend.decode(theirs, False) != by_file.decode(
                    theirs, skip_special_tokens=False
                ):
                    return text
    finally:
        by_file.encode_special_tokens = False
    return None


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, plain: bool) -> list[int] | None:
    """The ids of a text; None if the tokenizer fails on it."""
    try:
        encoding = tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=plain,
            padding=False,
            truncation=False,
            verbose=False,
        )
    except Exception:  # tokenizers raises bare Exceptions
        return None
    return list(encoding["input_ids"])


def _tokenizer_of(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(
            f"{file}: not a tokenizer ({first_line(error)}); download or copy it again"
        ) from None
    tokenizer.no_truncation()  # the file may ask to truncate or pad every text
    tokenizer.no_padding()
    return tokenizer


def _checked(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if not _knows_text(tokenizer):
        raise ValueError(
            f"{TOKENIZER_FILE} has no usable vocabulary: every text becomes empty or unknown; copy the right file"
        )
    return tokenizer


def _knows_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether any sample text gives tokens other than special ones."""
    ids: set[Any] = set()
    for text in SAMPLES[:-1]:
        ids.update(_ids(tokenizer, text, True) or ())
    return bool(ids.difference([tokenizer.unk_token_id], tokenizer.all_special_ids))


def _own(folder: Path, by_file: Tokenizer, found: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerFast:
    """The tokenizer of tokenizer.json, with the special tokens and the chat template of the folder."""
    settings = read_object(folder / _SETTINGS) if (folder / _SETTINGS).is_file() else {}
    if found is not None:
        specials = {name: getattr(found, name, None) for name in SPECIALS}
        template = found.chat_template
    else:
        named = read_object(folder / _SPECIALS_FILE) if (folder / _SPECIALS_FILE).is_file() else {}
        specials = {name: _content({**named, **settings}.get(name)) for name in SPECIALS}
        file = folder / "chat_template.jinja"
        template = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    # A special token that the file lacks would be added, with an id beyond the rows of the embedding.
    known = {
        name: str(token)
        for name, token in specials.items()
        if token is not None and by_file.token_to_id(str(token)) is not None
    }
    own = wrap(by_file, known, template)
    if (
        settings.get("add_bos_token") is True
        and (bos := known.get("bos_token"))
        and not _begins_with(own, bos)
    ):
        set_bos(own, bos)
    return own


def wrap(backend: Tokenizer, specials: dict[str, str], template: Any) -> PreTrainedTokenizerFast:
    """A transformers tokenizer that does what `backend` does, with these special tokens and chat template."""
    own = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend.to_str()), clean_up_tokenization_spaces=False, **specials
    )
    own.chat_template = template if isinstance(template, str | dict) else None
    return own


def set_bos(tokenizer: PreTrainedTokenizerFast, bos: str | None) -> None:
    """Make the tokenizer put `bos` before every text, or nothing if None."""
    processor: Any = None
    if bos is not None:
        tokens = [(bos, tokenizer.convert_tokens_to_ids(bos))]
        processor = TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=tokens)
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = processor


def _begins_with(tokenizer: PreTrainedTokenizerFast, bos: str) -> bool:
    return tokenizer("a")["input_ids"][:1] == [tokenizer.convert_tokens_to_ids(bos)]


def _content(token: Any) -> str | None:
    """The text of a special token, given as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
