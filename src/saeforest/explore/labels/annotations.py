"""What a person says about features and edges: labels, notes, bookmarks, ratings. Kept in RUN/annotations.sqlite.

The file is the only one that the explorer writes. It is independent of the index, so it survives when that is made
anew. An edge is named by its parent and its child: if the child gets another parent, the rating of the old edge stays,
and the new edge has none.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import product
from pathlib import Path
from threading import RLock
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError

from ...errors import InputError
from ...files import read_json, write_json
from ...output import printable
from ...schema import MOST, Schema, checked, said

T = TypeVar("T")

#: Version of the tables and of the exported JSON. A file of a newer version is refused.
FORMAT_VERSION = 1
FORMAT = "saeforest annotations"
MOST_LABEL, MOST_NOTE = 200, 10_000
Rating = Literal["yes", "no", "unsure"]
"""Whether a pair of parent and child makes sense."""
RATINGS: tuple[Rating, ...] = ("yes", "no", "unsure")
Kind = Literal["edge", "null"]
"""Whether a rated pair is an edge of the forest or a null pair."""
# "sfor": tells our files from other SQLite databases.
_APPLICATION = 0x73666F72
_WAIT_S = 5.0
_TABLES = """
CREATE TABLE feature (id INTEGER PRIMARY KEY, label TEXT, note TEXT, bookmark INTEGER NOT NULL DEFAULT 0,
                      changed REAL NOT NULL);
CREATE TABLE judged (id INTEGER PRIMARY KEY, label TEXT NOT NULL, judge TEXT NOT NULL, changed REAL NOT NULL);
CREATE TABLE rating (parent INTEGER NOT NULL, child INTEGER NOT NULL, kind TEXT NOT NULL, blind INTEGER NOT NULL,
                     rating TEXT NOT NULL, changed REAL NOT NULL, PRIMARY KEY (parent, child, blind));
"""

Feature = Annotated[int, Field(ge=0, le=MOST)]
Seconds = Annotated[float, Field(ge=0, le=MOST)]
"""A time, in seconds since 1970."""


@dataclass(frozen=True)
class Note:
    """What a person noted about a feature. label, note: None if there is none."""

    id: Feature
    label: Annotated[str, Field(max_length=MOST_LABEL)] | None = None
    note: Annotated[str, Field(max_length=MOST_NOTE)] | None = None
    bookmark: bool = False
    changed: Seconds = 0.0
    """When it was last changed."""

    @property
    def empty(self) -> bool:
        return self.label is None and self.note is None and not self.bookmark


@dataclass(frozen=True)
class Judged:
    """A label that a judge gave to a feature. judge: its name."""

    id: Feature
    label: Annotated[str, Field(max_length=MOST_LABEL)]
    judge: Annotated[str, Field(max_length=MOST_LABEL)]
    changed: Seconds = 0.0


@dataclass(frozen=True)
class Rated:
    """A rating of a pair. blind: whether the person was not told whether the pair is an edge or a null pair."""

    parent: Feature
    child: Feature
    rating: Rating
    kind: Kind = "edge"
    blind: bool = False
    changed: Seconds = 0.0


class _Exported(Schema):
    """The layout of an exported file."""

    format: str
    format_version: int
    features: list[Note] = Field(default_factory=list)
    judged: list[Judged] = Field(default_factory=list)
    ratings: list[Rated] = Field(default_factory=list)


class Annotations:
    """The annotations of one SAE of a run. May be used from several threads.

    path: file of the annotations, which is made when something is first written; None to keep them in memory.

    Raises InputError if the file is damaged, no file of annotations, or of a newer version.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = RLock()
        self._connection: sqlite3.Connection | None = None
        self.version = 0
        """Increases with every change, so that what was made from the annotations can be kept until then."""
        if path is None or path.exists():
            with self._reading():
                pass

    # -- reading

    def notes(self) -> dict[int, Note]:
        """What was noted, by feature."""
        return {note.id: _clean(note) for note in self._rows(Note, "feature", "id")}

    def note(self, feature: int) -> Note:
        """What was noted about a feature; empty if nothing was."""
        found = self._rows(Note, "feature", "id", "WHERE id = ?", (feature,))
        return _clean(found[0]) if found else Note(feature)

    def judged(self) -> dict[int, Judged]:
        """The labels that a judge gave, by feature."""
        found = self._rows(Judged, "judged", "id")
        return {judged.id: replace(judged, label=_line(judged.label) or "") for judged in found}

    def ratings(self, *, blind: bool | None = None) -> list[Rated]:
        """All ratings, in the order of their pairs; with `blind`, only those given blindly, or only the others."""
        where, values = ("", ()) if blind is None else ("WHERE blind = ?", (int(blind),))
        return self._rows(Rated, "rating", "child, parent, blind", where, values)

    def rating(self, parent: int, child: int) -> Rated | None:
        """The latest rating of an edge; None if there is none."""
        where = "WHERE parent = ? AND child = ? AND kind = 'edge'"
        found = self._rows(Rated, "rating", "changed", where, (parent, child))
        return found[-1] if found else None

    def tally(self) -> dict[Kind, dict[Rating, int]]:
        """The number of blind ratings by kind of pair and rating."""
        found: dict[Kind, dict[Rating, int]] = {kind: dict.fromkeys(RATINGS, 0) for kind in ("edge", "null")}
        for rated in self.ratings(blind=True):
            found[rated.kind][rated.rating] += 1
        return found

    # -- writing

    def set_note(
        self,
        feature: int,
        *,
        label: str | None = None,
        note: str | None = None,
        bookmark: bool | None = None,
    ) -> Note:
        """Change what is noted about a feature, and return it. None leaves a part as it is; an empty text removes it.

        A label is one line; control characters become visible signs.
        """
        with self._writing() as connection:
            old = self.note(feature)
            new = Note(
                feature,
                old.label if label is None else _line(label),
                old.note if note is None else _lines(note),
                old.bookmark if bookmark is None else bookmark,
                time.time(),
            )
            if new.empty:
                connection.execute("DELETE FROM feature WHERE id = ?", (feature,))
            else:
                _put(connection, "feature", new)
        return new

    def set_judged(self, judged: Judged) -> None:
        """Keep the label that a judge gave."""
        with self._writing() as connection:
            label = _line(judged.label)
            if label is not None:
                _put(connection, "judged", Judged(judged.id, label, judged.judge, time.time()))

    def rate(self, rated: Rated) -> None:
        """Keep a rating; it replaces an earlier one of the same pair, given blindly or not as this one is."""
        with self._writing() as connection:
            _put(connection, "rating", replace(rated, changed=time.time()))

    # -- as JSON

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "features": [asdict(note) for note in self.notes().values()],
            "judged": [asdict(judged) for judged in self.judged().values()],
            "ratings": [asdict(rated) for rated in self.ratings()],
        }

    def save(self, path: Path) -> None:
        """Write everything to a JSON file."""
        write_json(path, self.to_dict())

    def load(self, path: Path, d_sae: int) -> int:
        """Add what `save` wrote; what is there already is replaced if it is older. Returns the number of entries.

        Raises InputError if the file is damaged, of another kind or a newer version, or has features beyond `d_sae`.
        """
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"{path}: expected annotations that `saeforest explore` exported")
        if data.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{path}: format_version {data.get('format_version')!r}, expected {FORMAT_VERSION}; a newer saeforest "
                "reads it"
            )
        new = checked(_Exported, data, path)
        ids = [e.id for e in (*new.features, *new.judged)] + [
            i for r in new.ratings for i in (r.parent, r.child)
        ]
        if ids and max(ids) >= d_sae:
            raise InputError(
                f"{path}: has feature {max(ids)}, but this SAE has only features 0 to {d_sae - 1}"
            )
        with self._writing() as connection:
            for note in new.features:
                clean = _clean(note)
                if not clean.empty and clean.changed >= self.note(note.id).changed:
                    _put(connection, "feature", clean)
            there = self.judged()
            for judged in new.judged:
                if judged.id not in there or judged.changed >= there[judged.id].changed:
                    _put(connection, "judged", judged)
            old = {(r.parent, r.child, r.blind): r.changed for r in self.ratings()}
            for rated in new.ratings:
                if rated.changed >= old.get((rated.parent, rated.child, rated.blind), 0.0):
                    _put(connection, "rating", rated)
        return len(new.features) + len(new.judged) + len(new.ratings)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # -- the file

    def _rows(
        self, kind: Callable[..., T], table: str, order: str, where: str = "", values: tuple[Any, ...] = ()
    ) -> list[T]:
        names = [field.name for field in fields(cast("Any", kind))]
        with self._reading() as connection:
            if connection is None:
                return []
            query = f"SELECT {', '.join(names)} FROM {table} {where} ORDER BY {order}"
            rows = [dict(zip(names, row, strict=True)) for row in connection.execute(query, values)]
            for row, flag in product(rows, {"bookmark", "blind"}.intersection(names)):
                row[flag] = row[flag] == 1
            # A run's folder may come from anyone, and SQLite takes any value for any column.
            try:
                return _adapter(kind).validate_json(json.dumps(rows), strict=True)
            except ValidationError as error:
                raise sqlite3.DatabaseError(f"table {table}, {said(error)}") from None
            except (TypeError, ValueError) as error:  # bytes, or half of a character
                raise sqlite3.DatabaseError(f"table {table}: {error}") from None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """The open file; None if there is none yet."""
        with self._lock, self._errors():
            if self._connection is None and (self.path is None or self.path.exists()):
                self._connection = self._open()
            yield self._connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """The open file, in a transaction that is undone if the block fails."""
        with self._lock, self._errors():
            if self._connection is None:
                if self.path is not None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                self._connection = self._open()
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
            self.version += 1

    def _open(self) -> sqlite3.Connection:
        place = ":memory:" if self.path is None else self.path
        connection = sqlite3.connect(place, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            with connection:
                connection.execute("BEGIN IMMEDIATE" if self._is_new(connection) else "BEGIN")
                if self._is_new(connection):
                    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
                    for statement in filter(None, map(str.strip, _TABLES.split(";"))):
                        connection.execute(statement)
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @staticmethod
    def _is_new(connection: sqlite3.Connection) -> bool:
        return connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0

    def _check(self, connection: sqlite3.Connection) -> None:
        (application,), (version,) = (
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        if application != _APPLICATION:
            raise InputError(
                f"{self.path}: a database of another program, not saeforest's annotations; move it away"
            )
        if version != FORMAT_VERSION:
            raise InputError(
                f"{self.path}: annotations of format version {version}, expected {FORMAT_VERSION}; a newer saeforest "
                "reads them"
            )
        if (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Within, an error of SQLite is an InputError that names the file and says what to do."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise InputError(
                f"{self.path}: annotations can't be read or written ({error}); check the folder's permissions and space"
            ) from None
        except sqlite3.Error as error:
            raise InputError(
                f"{self.path}: damaged annotations ({error}); restore the file from a copy, or move it away"
            ) from None


@cache
def _adapter(kind: Any) -> Any:
    kinds: Any = list
    return TypeAdapter(kinds[kind])


def _clean(note: Note) -> Note:
    return replace(note, label=_line(note.label), note=_lines(note.note))


def _put(connection: sqlite3.Connection, table: str, entry: Note | Judged | Rated) -> None:
    values = asdict(entry)
    places = ", ".join("?" * len(values))
    connection.execute(
        f"INSERT OR REPLACE INTO {table} ({', '.join(values)}) VALUES ({places})", tuple(values.values())
    )


def _line(text: str | None) -> str | None:
    """One line of a text, at most `MOST_LABEL` characters; None if nothing is left."""
    return printable(" ".join(text.split()))[:MOST_LABEL].strip() or None if text else None


def _lines(text: str | None) -> str | None:
    """The lines of a text, at most `MOST_NOTE` characters; None if nothing is left."""
    if not text:
        return None
    return "\n".join(map(printable, text.splitlines()))[:MOST_NOTE].strip() or None
