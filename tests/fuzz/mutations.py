"""Ways to damage a file: small frozen dataclasses, whose repr tells how to do it again, and strategies that draw them.

A `place` is a millionth of the file, so that the same mutation does something in files of any size.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import yaml
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from saeforest.files import CHECKSUM, CHECKSUMS

MILLION = 1_000_000


class Mutation(Protocol):
    def __call__(self, data: bytes, /) -> bytes: ...


def at(place: int, n: int) -> int:
    return place * n // MILLION


# -- bytes


@dataclass(frozen=True)
class Flip:
    place: int
    bit: int

    def __call__(self, data: bytes) -> bytes:
        i = at(self.place, len(data))
        return data[:i] + bytes([data[i] ^ 1 << self.bit]) + data[i + 1 :] if data else data


@dataclass(frozen=True)
class Cut:
    place: int

    def __call__(self, data: bytes) -> bytes:
        return data[: at(self.place, len(data))]


@dataclass(frozen=True)
class Drop:
    place: int
    n: int

    def __call__(self, data: bytes) -> bytes:
        i = at(self.place, len(data))
        return data[:i] + data[i + self.n :]


@dataclass(frozen=True)
class Insert:
    place: int
    what: bytes

    def __call__(self, data: bytes) -> bytes:
        i = at(self.place, len(data) + 1)
        return data[:i] + self.what + data[i:]


@dataclass(frozen=True)
class Duplicate:
    place: int
    n: int
    to: int

    def __call__(self, data: bytes) -> bytes:
        i = at(self.place, len(data))
        return Insert(self.to, data[i : i + self.n])(data)


@dataclass(frozen=True)
class Zero:
    place: int
    n: int

    def __call__(self, data: bytes) -> bytes:
        i = at(self.place, len(data))
        n = len(data[i : i + self.n])
        return data[:i] + bytes(n) + data[i + n :]


@dataclass(frozen=True)
class Swap:
    place: int
    other: int
    n: int

    def __call__(self, data: bytes) -> bytes:
        i, j = sorted((at(self.place, len(data)), at(self.other, len(data))))
        n = min(self.n, j - i, len(data) - j)
        return data[:i] + data[j : j + n] + data[i + n : j] + data[i : i + n] + data[j + n :]


@dataclass(frozen=True)
class Whole:
    """The whole file is this."""

    what: bytes

    def __call__(self, data: bytes) -> bytes:
        return self.what


places = st.integers(0, MILLION - 1)
lengths = st.integers(1, 200)
#: Bytes that mean something to one of the parsers.
TOKENS = [
    b"\0", b"\n", b"\xff\xfe", b"{", b"]", b'"', b",", b":", b"0", b"-", b"e9", b"\xed\xa0\x80", b"\x1b[2J", b"9" * 40,
    b"&a [*a]", b"!!python/object:os.system ", b"\xef\xbb\xbf", b"Infinity", b"[" * 3000,
]  # fmt: skip
WHOLES = [
    b"", b"\n", b"{}", b"[]", b"null", b"3", b'"x"', b"\0" * 100, b"[" * 5000, b'{"a":' * 3000, b"9" * 5000,
    b"\x08" + b"\0" * 7,
]  # fmt: skip

byte_mutations: st.SearchStrategy[Mutation] = st.one_of(
    st.builds(Flip, places, st.integers(0, 7)),
    st.builds(Cut, places),
    st.builds(Drop, places, lengths),
    st.builds(Insert, places, st.sampled_from(TOKENS)),
    st.builds(Duplicate, places, lengths, places),
    st.builds(Zero, places, lengths),
    st.builds(Swap, places, places, lengths),
    st.builds(Whole, st.sampled_from(WHOLES)),
)


# -- JSON and YAML

DEEP, DIGITS = "@deep@", "@digits@"
#: What a value is replaced by; the two words above stand for text that `json` would not write.
BAD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 10**9, 10**18, 10**30, -(10**30), 0.5, -0.0, 1e308, 1e-320, "", "x", "1", "-1",
    "nan",
    "\x1b[2J[/x]", "é\u202e", "../../../etc/passwd", "x" * 10_000, [], {}, [[]], [1], ["x"], {"a": 1}, [0.5, 0.5],
    [None] * 50, DEEP, DIGITS,
]  # fmt: skip
NAMES = ["", "x", "step", "checksum", "__class__", "\x1b[2J", "x" * 5_000]


def nodes(data: Any) -> Iterator[tuple[Any, Any]]:
    """Container and key of every value, whose order does not depend on what was changed in them."""
    waiting = [data]
    while waiting:
        container = waiting.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            yield container, key
            if isinstance(container[key], dict | list):
                waiting.append(container[key])


def _written(data: Any) -> bytes:
    text = json.dumps(data)
    return text.replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000).replace(f'"{DIGITS}"', "7" * 5000).encode()


def unsigned(data: Any) -> Any:
    """Without any checksums, as whoever edits the file on purpose leaves it."""
    if isinstance(data, dict):
        return {k: unsigned(v) for k, v in data.items() if k not in (CHECKSUM, CHECKSUMS)}
    return [unsigned(v) for v in data] if isinstance(data, list) else data


@dataclass(frozen=True)
class Value:
    """Another value at one place of the data."""

    node: int
    value: Any

    def change(self, data: Any) -> Any:
        found = list(nodes(data)) if isinstance(data, dict | list) else []
        if not found:
            return self.value
        container, key = found[self.node % len(found)]
        container[key] = self.value
        return data


@dataclass(frozen=True)
class Rename:
    """Another name for one key; None takes it away, with its value."""

    node: int
    name: str | None

    def change(self, data: Any) -> Any:
        found = (
            [(c, k) for c, k in nodes(data) if isinstance(c, dict)] if isinstance(data, dict | list) else []
        )
        if found:
            container, key = found[self.node % len(found)]
            value = container.pop(key)
            if self.name is not None:
                container[self.name] = value
        return data


@dataclass(frozen=True)
class Json:
    """A change of the data in a JSON file; `edited`: its checksums are taken away, so that it is looked at."""

    how: Value | Rename
    edited: bool

    def __call__(self, data: bytes) -> bytes:
        parsed = json.loads(data)
        return _written(self.how.change(unsigned(parsed) if self.edited else parsed))


@dataclass(frozen=True)
class Yaml:
    how: Value | Rename

    def __call__(self, data: bytes) -> bytes:
        text = yaml.safe_dump(self.how.change(yaml.safe_load(data)))
        return text.replace(DEEP, "[" * 3000).replace(DIGITS, "7" * 5000).encode()


@dataclass(frozen=True)
class Scalar:
    """Another text behind one colon of a YAML file."""

    line: int
    text: str
    edited: bool
    """Its checksum, which is a comment, is taken away."""

    def __call__(self, data: bytes) -> bytes:
        lines = data.decode().splitlines()[self.edited :]
        i = self.line % len(lines)
        lines[i] = f"{lines[i].partition(':')[0]}: {self.text}"
        return "\n".join(lines).encode()


#: Texts that YAML has something special for.
SCALARS = [
    "yes", "no", "~", "2020-99-99", "!!int abc", "!!bool 3", "!!float x", "!!timestamp x", "!!binary x", "!!set {a}",
    "0x10", "1_000", "1:30", ".inf", ".nan", "&a [*a]", "*nobody", "<<: 3", "|", "? [1]", "'", "- 1", "1e-3", "\t", "@",
    "!!python/name:os.system", "[" * 2000,
]  # fmt: skip

changes = st.one_of(
    st.builds(Value, st.integers(0, 9_999), st.sampled_from(BAD)),
    st.builds(Rename, st.integers(0, 9_999), st.sampled_from([None, *NAMES])),
)
json_mutations: st.SearchStrategy[Mutation] = st.one_of(
    st.builds(Json, changes, st.just(True)), st.builds(Json, changes, st.booleans()), byte_mutations
)
yaml_mutations: st.SearchStrategy[Mutation] = st.one_of(
    st.builds(Yaml, changes),
    st.builds(Scalar, st.integers(0, 999), st.sampled_from(SCALARS), st.booleans()),
    byte_mutations,
)


# -- safetensors: eight bytes with the length of a JSON header, the header, and the numbers


@dataclass(frozen=True)
class Header:
    """A change of the header; its length follows."""

    how: Value | Rename

    def __call__(self, data: bytes) -> bytes:
        (n,) = struct.unpack("<Q", data[:8])
        header = _written(self.how.change(json.loads(data[8 : 8 + n])))
        return struct.pack("<Q", len(header)) + header + data[8 + n :]


@dataclass(frozen=True)
class HeaderLength:
    n: int

    def __call__(self, data: bytes) -> bytes:
        return struct.pack("<Q", self.n) + data[8:]


TENSOR_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "float64": lambda t: t.double(),
    "float8": lambda t: t.to(torch.float8_e5m2),
    "int32": lambda t: t.int(),
    "uint8": lambda t: t.to(torch.uint8),
    "bool": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "shorter": lambda t: t[:-1] if t.dim() else t,
    "empty": lambda t: t[:0] if t.dim() else t,
    "longer": lambda t: torch.cat([t, t]) if t.dim() else t[None],
    "deeper": lambda t: t[None],
    "flat": lambda t: t.flatten(),
    "turned": lambda t: t.T.contiguous() if t.dim() == 2 else t.flip(0) if t.dim() else t,
    "nan": lambda t: t + float("nan") if t.is_floating_point() else t - 1,
    "inf": lambda t: t + float("inf") if t.is_floating_point() else t + 2**30,
    "huge": lambda t: (
        t + 1e30 if t.is_floating_point() else torch.full_like(t, 2**62 if t.dtype == torch.int64 else 100)
    ),
    "negative": lambda t: -t - 1 if t.dtype != torch.bool else t,
}


@dataclass(frozen=True)
class Changed:
    """One tensor of the file is another; the file is whole."""

    tensor: int
    how: str

    def __call__(self, data: bytes) -> bytes:
        tensors = load(data)
        name = sorted(tensors)[self.tensor % len(tensors)]
        match self.how:
            case "gone":
                del tensors[name]
            case "renamed":
                tensors["\x1b[2J"] = tensors.pop(name)
            case _:
                tensors[name] = TENSOR_CHANGES[self.how](tensors[name]).contiguous()
        return save(tensors)


@dataclass(frozen=True)
class Unlisted:
    """The same, in a folder whose manifest lists no checksums: what is inside must be looked at."""

    how: Mutation

    def __call__(self, data: bytes) -> bytes:
        return self.how(data)


inside: st.SearchStrategy[Mutation] = st.one_of(
    st.builds(Changed, st.integers(0, 99), st.sampled_from(["gone", "renamed", *TENSOR_CHANGES])),
    st.builds(Header, changes),
    st.builds(HeaderLength, st.sampled_from([0, 1, 7, 100, 10**6, 10**12, 2**63, 2**64 - 1])),
)
tensor_mutations: st.SearchStrategy[Mutation] = st.one_of(
    st.builds(Unlisted, inside), st.builds(Unlisted, inside), inside, byte_mutations
)


# -- lines


@dataclass(frozen=True)
class Lines:
    """A change of one line, or of one and the next."""

    line: int
    how: str
    place: int = 0
    inner: Value | Rename | None = None

    def __call__(self, data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        if not lines:
            return data
        i = self.line % len(lines)
        line, rest = lines[i], lines[i + 1 :]
        match self.how:
            case "gone":
                new = []
            case "twice":
                new = [line, line]
            case "swapped":
                new, rest = [*rest[:1], line], rest[1:]
            case "cut":
                new = [line[: at(self.place, len(line))] + b"\n"]
            case "joined":
                new = [line.rstrip(b"\n")]
            case "torn":
                new, rest = [line[: at(self.place, len(line))]], []
            case "json" if self.inner is not None and line.startswith(b"{"):
                new = [_written(self.inner.change(json.loads(line))) + b"\n"]
            case _:
                new = [TOKENS[self.place % len(TOKENS)] + b"\n", line]
        return b"".join([*lines[:i], *new, *rest])


line_mutations: st.SearchStrategy[Mutation] = st.one_of(
    st.builds(
        Lines,
        st.integers(0, 999),
        st.sampled_from(["gone", "twice", "swapped", "cut", "joined", "torn", "odd"]),
        places,
    ),
    st.builds(Lines, st.integers(0, 999), st.just("json"), st.just(0), changes),
    byte_mutations,
)
