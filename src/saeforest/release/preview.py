"""A picture and a page of one family, for people who look at a release before they load it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..explore.api import Api
from ..explore.figures import draw
from ..explore.opening import explorer_of
from ..explore.queries.explorer import Explorer
from ..explore.queries.families import telling_families
from ..explore.serving.static import export_subtree
from ..explore.subject import Subject
from ..explore.views.nulls import measured_nulls
from ..output import note
from .contents import PREVIEW, Release

PICTURE, PAGE = "family.png", "family.html"


@dataclass(frozen=True)
class Preview:
    """A family of an SAE of the release. files: path in the repository -> file."""

    sae: str
    feature: int
    nulls: str
    files: dict[str, Path]


def make_preview(release: Release, folder: Path) -> Preview | None:
    """Draw the most telling family of the first SAE of a release that has an index and a forest, into a folder.

    None if there is no such SAE or family; a note says so if that lies with this machine, which may lack the tokenizer.
    """
    for name, member in release.members.items():
        if not member.has_index or not member.forest.edges.shape[1]:
            continue
        try:
            subject = Subject.of_run(release.run, name, "cpu")
            if (found := preview_of(explorer_of(subject), subject, folder)) is not None:
                return found
        except InputError as error:
            note(f"no picture of a family: {error}")
            return None
    return None


def preview_of(explorer: Explorer, subject: Subject, folder: Path) -> Preview | None:
    """Draw the most telling family of an SAE of a run into a folder; None if there is none.

    What a person noted in the explorer is left out. Raises InputError if a package is missing that draws.
    """
    shown = telling_families(explorer.index, explorer.forest, 1).shown
    if not shown:
        return None
    feature = shown[0].parent
    nulls = "" if subject.run is None else measured_nulls(subject.run, subject.name) or ""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PICTURE).write_bytes(draw(explorer, feature, "family", "png", nulls=nulls))
    export_subtree(Api(explorer, subject=subject, static=True), feature, folder / PAGE)
    return Preview(
        subject.name, feature, nulls, {f"{PREVIEW}/{file}": folder / file for file in (PICTURE, PAGE)}
    )
