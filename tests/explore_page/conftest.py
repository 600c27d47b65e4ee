"""A headless Chromium for the tests of the page; without one they are skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from explore_page.made_api import MadeForest
from explore_page.page_server import serving

PATIENCE = 60_000  # ms: a busy machine is slow, not wrong
# Our listener comes after the page's own: when it is called, the page knows.
GO_TO = """(address) => new Promise((arrived) => {
    addEventListener("hashchange", () => arrived(), {once: true});
    location.hash = address;
})"""
NAMES = ("chromium", "chromium-browser", "google-chrome")


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


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = os.environ.get("SAEFOREST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(
            "no Chromium: install it (apt-get install chromium) or set SAEFOREST_CHROMIUM to its path"
        )
    arguments = [
        "--no-sandbox",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-gpu",
    ]
    rules = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=[*arguments, rules])
        yield launched
        launched.close()


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
