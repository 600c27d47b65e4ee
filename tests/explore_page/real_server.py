"""The explorer's own server, and what every view of a run must do on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import uvicorn
from playwright.sync_api import Browser, expect

from explore_page.conftest import watching
from saeforest.explore.api import Api
from saeforest.explore.api.compare import Opened
from saeforest.explore.serving.server import make_app
from saeforest.explore.subject import Subject


@contextmanager
def running(api: Api) -> Iterator[str]:
    """Serves an API on a free port; gives its address."""
    server = uvicorn.Server(uvicorn.Config(make_app(api), host="127.0.0.1", port=0, log_level="error"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


def every_view_opens(run: Path, browser: Browser) -> None:
    """Every view of a run opens from its address, lacks nothing, and asks nobody else for anything."""
    subject = Subject.of_run(run, None, "cpu")
    others = {"itself": lambda: Opened(subject.sae, subject.forest[0], api)}
    api = Api.of_subject(subject, others=others)
    parent = max(range(subject.sae.d_sae), key=lambda f: len(api.features.live_children(f)[0]))
    of_parent = [f"{view}/{parent}" for view in ("feature", "family", "data", "geometry")]
    alone = ["", "map", "tree", "families", "edges", "training", "audit", "help"]
    asked = ["prompt?text=Monday", f"compare?other=itself&at={parent}"]
    try:
        with running(api) as url, watching(browser, url) as watched:
            for view in (*alone, *of_parent, *asked):
                page = watched.open(f"#/{view}")
                expect(page.locator("h1")).to_be_visible()
                assert page.locator("main :is(.state.failed, .state.lacking)").all_inner_texts() == [], view
            assert watched.complaints == []
            assert watched.outside() == []
    finally:
        api.annotations.close()
