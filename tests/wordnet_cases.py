"""A toy WordNet in the format of the real one: a line of data at the byte that its number says."""

from __future__ import annotations

from pathlib import Path

#: word -> the words above it, in the order of its senses.
ABOVE: dict[str, tuple[str, ...]] = {
    "entity": (),
    "object": ("entity",),
    "matter": ("object",),
    "living_thing": ("matter",),
    "animal": ("living_thing",),
    "dog": ("animal",),
    "poodle": ("dog",),
    "wolf": ("animal",),
    "child": ("animal",),
    "food": ("matter",),
    "fruit": ("food",),
    "apple": ("fruit",),
    "pear": ("fruit",),
    "can": ("object",),
}
_LICENSE = "  1 This is no real license\n  2 of WordNet.\n"


def write_wordnet(folder: Path, end: str = "\n") -> Path:
    """Write the toy. end: how lines end; offsets count one byte for it, as in the packaged files."""
    folder.mkdir(parents=True)

    def line(word: str, offsets: dict[str, int]) -> str:
        pointers = "".join(f" @ {offsets[up]:08} n 0000" for up in ABOVE[word])
        return f"{offsets[word]:08} 03 n 01 {word} 0 {len(ABOVE[word]):03}{pointers} | a {word}, not @ 00000000  \n"

    offsets, at = dict.fromkeys(ABOVE, 0), len(_LICENSE)
    for word in ABOVE:
        offsets[word] = at
        at += len(line(word, offsets))
    data = _LICENSE + "".join(line(word, offsets) for word in ABOVE)
    index = _LICENSE + "".join(f"{word} n 1 1 @ 1 0 {offsets[word]:08}  \n" for word in sorted(ABOVE))
    for name, text in (("data.noun", data), ("index.noun", index), ("noun.exc", "children child\n")):
        (folder / name).write_bytes(text.replace("\n", end).encode())
    return folder
