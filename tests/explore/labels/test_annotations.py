"""Annotations: what a person wrote is there again, whatever it holds, and files of others are refused."""

from __future__ import annotations

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from saeforest.errors import InputError
from saeforest.explore.labels.annotations import MOST_LABEL, Annotations, Judged, Note, Rated


def test_what_is_written_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "annotations.sqlite"
    notes = Annotations(path)
    assert notes.note(3) == Note(3)
    assert not path.exists(), "nothing is written until there is something to write"
    notes.set_note(3, label="  days of\nthe week ", bookmark=True)
    notes.set_note(3, note="first\r\nsecond")
    notes.set_judged(Judged(3, "weekdays", "a judge"))
    notes.rate(Rated(1, 3, "yes"))
    notes.rate(Rated(1, 3, "unsure"))
    notes.close()
    again = Annotations(path)
    note = again.note(3)
    assert (note.label, note.note, note.bookmark) == ("days of the week", "first\nsecond", True)
    assert again.judged()[3].label == "weekdays"
    rated = again.rating(1, 3)
    assert rated is not None
    assert rated.rating == "unsure"
    assert again.rating(2, 3) is None, "the edge from another parent has no rating"
    again.set_note(3, label="", note="", bookmark=False)
    assert again.notes() == {}
    assert {file.name for file in tmp_path.iterdir()} == {"annotations.sqlite"}


def test_control_characters_and_length_are_bounded() -> None:
    notes = Annotations(None)
    note = notes.set_note(0, label="\x1b[31m</script>\u202egnp" + "x" * 1000, note="a\x00b\n\u2066c")
    assert note.label is not None
    assert note.note is not None
    assert note.label.startswith("␛[31m</script>\ufffdgnp")
    assert len(note.label) == MOST_LABEL
    assert note.note == "a␀b\n\ufffdc"


def test_the_tally_counts_blind_ratings() -> None:
    notes = Annotations(None)
    for child, kind, rating in ((4, "edge", "yes"), (5, "edge", "no"), (6, "null", "no"), (7, "null", "yes")):
        notes.rate(Rated(1, child, rating, kind, blind=True))  # pyright: ignore[reportArgumentType]
    notes.rate(Rated(1, 8, "yes"))
    assert notes.tally() == {
        "edge": {"yes": 1, "no": 1, "unsure": 0},
        "null": {"yes": 1, "no": 1, "unsure": 0},
    }


def test_export_and_import(tmp_path: Path) -> None:
    notes = Annotations(tmp_path / "a.sqlite")
    notes.set_note(1, label="old", note="keep")
    notes.set_note(2, bookmark=True)
    notes.set_judged(Judged(2, "judged", "j"))
    notes.rate(Rated(0, 2, "no", "null", blind=True))
    notes.save(tmp_path / "out.json")
    other = Annotations(tmp_path / "b.sqlite")
    assert other.load(tmp_path / "out.json", d_sae=3) == 4
    assert other.to_dict() == notes.to_dict()
    other.set_note(1, label="newer")
    other.load(tmp_path / "out.json", d_sae=3)
    assert other.note(1).label == "newer"
    with pytest.raises(InputError, match="has feature 2, but this SAE has only features 0 to 1"):
        other.load(tmp_path / "out.json", d_sae=2)
    data = json.loads((tmp_path / "out.json").read_text())
    del data["checksum"]
    for change, said in (
        ({"format_version": 2}, "a newer saeforest"),
        ({"format": "x"}, "expected annotations"),
        ({"features": [{"id": "1"}]}, "features.0.id"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(data | change))
        with pytest.raises(InputError, match=said):
            other.load(tmp_path / "bad.json", d_sae=3)


def test_files_of_others_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "annotations.sqlite"
    path.write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(InputError, match="damaged annotations"):
        Annotations(path)
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    with pytest.raises(InputError, match="another program"):
        Annotations(path)
    path.unlink()
    notes = Annotations(path)
    notes.set_note(1, label="a")
    notes.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE feature SET note = x'00ff', bookmark = 'yes'")
    connection.close()
    with pytest.raises(InputError, match=r"damaged annotations .table feature"):
        Annotations(path).notes()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(InputError, match="format version 2, expected 1; a newer saeforest"):
        Annotations(path)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    notes = Annotations(tmp_path / "annotations.sqlite")
    notes.path = tmp_path / "nowhere" / "deeper.sqlite"
    (tmp_path / "nowhere").mkdir()
    notes.path.mkdir()
    with pytest.raises(InputError, match="can't be read or written"):
        notes.set_note(1, label="a")


def test_many_threads_write_at_once(tmp_path: Path) -> None:
    notes, other = (Annotations(tmp_path / "a.sqlite") for _ in range(2))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: (notes, other)[i % 2].set_note(i, label=f"label {i}"), range(64)))
    assert {i: note.label for i, note in notes.notes().items()} == {i: f"label {i}" for i in range(64)}
