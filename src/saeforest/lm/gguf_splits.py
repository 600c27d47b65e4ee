"""Pre-tokenization in GGUF files: how text is split before bytes are merged, by the name under `tokenizer.ggml.pre`.

The names and patterns are llama.cpp's. Each pattern in a list further splits the pieces left by the one before it:
every match is a piece, and so is the text between two matches.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split


def _characters(ranges: str) -> str:
    """The inside of a character class, from hexadecimal code points and ranges of them."""
    return "".join("-".join(f"\\x{{{end}}}" for end in ends.split("-")) for ends in ranges.split())


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CLITICS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r"\s*[\r\n]+"
_REST = rf"{_LINES}|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CLITICS}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_REST}"
_QWEN2 = rf"{_CLITICS}|{_WORD}|\p{{N}}|{_SIGNS}|{_REST}"
_QWEN35 = (
    rf"{_CLITICS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_REST}"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_SIGNS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_SIGNS_SLASH}|{_REST}"
_CASED = rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CLITICS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CLITICS}?"
_GPT4O = rf"{_CASED}|\p{{N}}{{1,3}}|{_SIGNS_SLASH}|{_REST}"
_IN_THREES_FROM_THE_END = r"\d{1,3}(?=(?:\d{3})*\b)"
_HAN_KANA = r"[一-龥぀-ゟ゠-ヿ]+"
_ASCII_SIGN = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_DEEPSEEK_WORD = rf"{_ASCII_SIGN}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
_DEEPSEEK3 = rf"{_DEEPSEEK_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_REST}"
# Letters that have a case, as DeepSeek's tokenizer lists them; as code points, since some look alike.
_DEEPSEEK_LETTERS = _characters(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C "
    "38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B "
    "1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 "
    "1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 "
    "2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B "
    "2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 "
    "FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF "
    "1E900-1E943"
)
_DEEPSEEK_ASIAN = "[一-龥ࠀ-一가-퟿]+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_FALCON_SIGNS = r"[\p{P}\$\+<=>\^~\|`]+"
_NO_HAN_UPPER, _NO_HAN_LOWER = (f"[{c[1:-1]}&&[^\\p{{Han}}]]" for c in (_UPPER, _LOWER))
_KIMI = (
    rf"\p{{Han}}+|{_BEFORE}{_NO_HAN_UPPER}*{_NO_HAN_LOWER}+{_CLITICS}?"
    rf"|{_BEFORE}{_NO_HAN_UPPER}+{_NO_HAN_LOWER}*{_CLITICS}?|\p{{N}}{{1,3}}|{_SIGNS}|{_REST}"
)
_AFMOE_ASIAN = "[一-鿿㐀-䶿\uf900-\ufaff぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"
_JAIS2_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))

_LLAMA3_NAMES = "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"
_BY_PATTERNS: dict[tuple[str, ...], str] = {
    (_GPT2,): (
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code gigachat a.x-4.0 mellum "
        "modern-bert roberta-bpe exaone4 mpt olmo jais trillion granite-docling"
    ),
    (r"\p{N}", _GPT2): "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
    (_LLAMA3,): f"{_LLAMA3_NAMES} dbrx smaug-bpe glm4 chatglm-bpe",
    (_QWEN2,): "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
    (_QWEN35,): "qwen35",
    (_TEKKEN,): "tekken",
    (_GPT4O,): "gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m",
    (_IN_THREES_FROM_THE_END, _GPT4O): "tiny_aya cohere2moe",
    (
        r"[\r\n]",
        rf"\s?[{_DEEPSEEK_LETTERS}]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        _DEEPSEEK_ASIAN,
        r"\p{N}+",
    ): "deepseek-llm",
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_ASIAN, r"\p{N}"): "deepseek-coder",
    (r"\p{N}{1,3}", _HAN_KANA, _DEEPSEEK3): "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
    (
        r"\p{N}{1,3}",
        _HAN_KANA,
        rf"{_DEEPSEEK_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+",
        r"\p{N}",
    ): "spark2_5",
    (
        r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
        rf"{_CASED}|\p{{N}}|{_SIGNS_SLASH}|{_REST}",
    ): "youtu",
    (_FALCON_SIGNS, _GPT2, "[0-9][0-9][0-9]"): "falcon",
    (_BLOOM,): "bloom poro-chat gpt3-finnish",
    (_BLOOM, r"\p{N}"): "viking",
    (
        "<sentinel:[0-9]+>",
        "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        r"([\t\n]|    |  )",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        _GPT2,
    ): "chameleon",
    (_KIMI,): "kimi-k2",
    (r"\p{N}+", r"(?=(\d{3})+(?!\d))"): "superbpe",
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
    ): "bailingmoe bailingmoe2 llada-moe",
    (rf"{_CLITICS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_REST}",): "seed-coder",
    (rf"{_WORD}|\p{{N}}|{_SIGNS}|{_REST}",): "ufakzeka",
    (
        r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
        _AFMOE_ASIAN,
        _DEEPSEEK3,
    ): "afmoe",
    (r"[^\n]+|[\n]+", _QWEN2): "laguna",
    (
        rf"{_CLITICS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
    ): "exaone-moe",
    (r"\p{N}{1,3}", rf"{_CLITICS}|{_WORD}|\p{{N}}+|{_SIGNS}|{_REST}"): "minicpm5",
    (
        rf"{_CLITICS}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_LINES}|{_JAIS2_SPACES}|\s{{1,2}}(?!\S)|\s{{1}}",
    ): "jais-2",
    (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"): "default",
}
PATTERNS = {name: patterns for patterns, names in _BY_PATTERNS.items() for name in names.split()}

# Names under which a piece that is itself a token becomes that token, even if no merges lead to it.
WHOLE_PIECES = {*_LLAMA3_NAMES.split(), "minicpm5", "youtu", "tekken", "granite-embed-multi-97m"}
# Names under which BOS comes before every text unless the file says otherwise.
BOS = {*_LLAMA3_NAMES.split(), "tekken", "chameleon"}


def pre_tokenizer(name: str) -> Any:
    """The pre-tokenizer of this name for a byte-level vocabulary. Raises ValueError for an unknown name."""
    if name not in PATTERNS:
        raise ValueError(
            f"unknown pre-tokenization {name!r} (tokenizer.ggml.pre); give the model as a folder with its "
            "tokenizer.json"
        )
    splits = [Split(Regex(pattern), "isolated") for pattern in PATTERNS[name]]
    return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])
