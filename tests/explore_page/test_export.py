"""Exports open from file:// with the network blocked, ask for nothing but their own files, and complain of nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from browser_cases import PATIENCE
from explore_page.conftest import GO_TO
from figure_cases import words_explorer
from saeforest.explore.api import Api
from saeforest.explore.labels.annotations import Annotations
from saeforest.explore.serving.static import export_everything, export_subtree

HOSTILE = "<script>document.title='obeyed'</script>\u202e"


class Opened:
    """A page in a browser without a network, with what it asked for and what it complained about."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None,
        )

    def load(self, path: Path) -> str:
        """What the page shows when it is opened."""
        self.asked.clear()
        self.complaints.clear()
        self.page.goto(path.as_uri())
        return self._text()

    def text(self, address: str) -> str:
        """What the open page shows at an address of a view."""
        self.page.evaluate(GO_TO, address)
        return self._text()

    def _text(self) -> str:
        self.page.wait_for_selector("main[aria-busy=false] :is(h1, .state.failed)")
        expect(self.page.locator(".spinner")).to_have_count(0)
        return self.page.inner_text("main")


@pytest.fixture(scope="module")
def opened(browser: Browser) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1366, "height": 768}, offline=True)
    context.set_default_timeout(PATIENCE)
    yield Opened(context.new_page())
    context.close()


@pytest.fixture(scope="module")
def answers() -> Api:
    noted = Annotations(None)
    Api(words_explorer(), noted).put("annotations/2", {"label": HOSTILE})
    return Api(words_explorer(), noted, name="words", static=True)


def test_a_file_opens_without_a_network(answers: Api, opened: Opened, tmp_path: Path) -> None:
    file = tmp_path / "a family.html"
    export_subtree(answers, 0, file)
    assert "Monday" in opened.load(file)
    assert opened.page.url == file.as_uri() + "#/family/0"
    views = {
        "#/feature/4": "Saturday",
        "#/family/2": "June",
        "#/geometry/0": "64",
        "#/tree": "7 features",
    }
    for address, said in views.items():
        assert said in opened.text(address), address
    assert opened.asked == [file.as_uri()]
    assert "<script>" in opened.text("#/feature/2")
    assert opened.page.get_by_role("textbox", name="Label", exact=True).count() == 0
    assert opened.page.get_by_role("button", name="Save this").count() == 0
    assert opened.page.title() != "obeyed"
    assert opened.complaints == []


def test_a_part_says_what_it_does_not_hold(answers: Api, opened: Opened, tmp_path: Path) -> None:
    file = tmp_path / "part.html"
    export_subtree(answers, 1, file)
    assert "Saturday" in opened.load(file)
    assert "export holds only" in opened.text("#/feature/5")
    tree = opened.text("#/tree")
    assert "January" not in tree
    assert "3 features" in tree
    notice = opened.page.locator(".export-notice")
    expect(notice).to_contain_text(
        "This file holds 3 of 7 features: feature 1, the 1 below it, 1 ancestor of it."
    )
    assert opened.page.locator("nav[aria-label=Views] a").all_inner_texts() == ["Overview", "Tree", "Help"]
    assert "holds only a part" in opened.text("#/families")
    assert "The whole forest" not in opened.text("#/")
    # Of the parent's family only one child is held; what is said of it is said of all.
    assert "2 of 3 judged children" in opened.text("#/family/0")
    assert opened.complaints == []


def test_a_folder_loads_its_shards(answers: Api, opened: Opened, tmp_path: Path) -> None:
    index = export_everything(answers, tmp_path / "pages").path / "index.html"
    assert "words" in opened.load(index)
    assert "Saturday" in opened.text("#/feature/4")
    shard = (index.parent / "data" / "feature-0.js").as_uri()
    assert opened.asked == [index.as_uri(), shard]
    assert "June" in opened.text("#/family/2")
    assert opened.complaints == []
