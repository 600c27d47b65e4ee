"""Pages that are watched by the tests: what they asked for, and what they complained about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from browser_cases import PATIENCE
from explore_page.made_api import MadeForest
from explore_page.page_server import serving

# Our listener comes after the page's own: when it is called, the page knows.
GO_TO = """(address) => new Promise((arrived) => {
    addEventListener("hashchange", () => arrived(), {once: true});
    location.hash = address;
})"""


class Watched:
    """A page, with what it asked for and what it complained about."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None,
        )

    def load(self, address: str) -> Page:
        """Load the page anew at an address of a view, and wait until it shows what it has."""
        if self.page.url == "about:blank":
            self.page.goto(self.url + address)
        else:
            self.page.evaluate("(address) => history.replaceState(null, '', address)", address)
            self.page.reload()
        return self.settled()

    def open(self, address: str) -> Page:
        """Go to an address of a view within the page, and wait until it shows what it has."""
        if self.page.url in ("about:blank", self.url + address):
            return self.load(address)
        self.page.evaluate(GO_TO, address)
        return self.settled()

    def settled(self) -> Page:
        self.page.wait_for_selector("main[aria-busy=false] :is(h1, .state.failed)")
        expect(self.page.locator(".spinner")).to_have_count(0)
        return self.page

    def outside(self) -> list[str]:
        """Requests that left loopback."""
        allowed = {"127.0.0.1", "", None}
        return [url for url in self.asked if urlsplit(url).hostname not in allowed]


@contextmanager
def watching(browser: Browser, url: str) -> Iterator[Watched]:
    """A page that a laptop shows."""
    context = browser.new_context(viewport={"width": 1366, "height": 768}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    yield Watched(context.new_page(), url)
    context.close()


@pytest.fixture(scope="session")
def made() -> MadeForest:
    return MadeForest()


@pytest.fixture(scope="session")
def watched(browser: Browser, made: MadeForest) -> Iterator[Watched]:
    with serving(made) as url, watching(browser, url) as page:
        yield page
