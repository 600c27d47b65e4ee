"""How fast the explorer's page is at 24,576 features: first views, scrolling the tree, search.

    PYTHONPATH=tests .venv/bin/python benchmarks/explorer_page.py

A made-up forest behind a small server, in headless Chromium without a GPU; prints JSON. Targets: first view under
1.5 s, scrolling p95 under 32 ms a frame, search under 50 ms.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time

from playwright.sync_api import Page, sync_playwright

from explore_page.made_api import MadeForest
from explore_page.page_server import serving

SCROLL = """async () => {
  const box = document.querySelector('[role=tree]');
  const frames = [];
  let last = await new Promise(requestAnimationFrame);
  for (let step = 0; step < 120; step++) {
    box.scrollTop += 700;
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - last);
    last = now;
  }
  return frames.sort((a, b) => a - b);
}"""
SEARCH = """async (text) => {
  const shown = () => document.querySelector('.tally').textContent;
  const before = shown();
  const start = performance.now();
  history.replaceState(null, '', '#/tree?in=label&q=' + text);
  dispatchEvent(new Event('popstate'));
  while (shown() === before || !shown().includes(text)) await new Promise((next) => setTimeout(next, 0));
  return performance.now() - start;
}"""


def first_view(page: Page, address: str, selector: str) -> float:
    """Seconds from asking for the address until the view is there."""
    page.goto("about:blank")
    start = time.perf_counter()
    page.goto(address)
    page.wait_for_selector(selector)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="path of the browser")
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often each view is opened; medians are printed"
    )
    parser.add_argument("--features", type=int, default=24_576)
    settings = parser.parse_args()
    first = (settings.features // 12, settings.features // 4)
    made = MadeForest((*first, settings.features - sum(first)))
    with serving(made) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=settings.chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        views = {
            "overview": ("#/", ".thumb canvas"),
            "map": ("#/map", ".icicle canvas"),
            "tree": ("#/tree", "[role=treeitem]"),
            "edges": ("#/edges", ".scatter canvas"),
            "feature": ("#/feature/49", ".contexts"),
        }
        seconds = {
            name: round(
                statistics.median(first_view(page, url + at, what) for _ in range(settings.rounds)), 3
            )
            for name, (at, what) in views.items()
        }
        first_view(page, url + "#/tree?open=all", "[role=treeitem]")
        frames = page.evaluate(SCROLL)
        first_view(page, url + "#/tree", "[role=treeitem]")
        searches = [page.evaluate(SEARCH, text) for text in ("Monday", "rain", "heart", "bread", "court")]
        browser.close()
    frame = {"p50": frames[len(frames) // 2], "p95": frames[int(0.95 * len(frames))]}
    result = {
        "features": settings.features,
        "first_view_s": seconds,
        "scroll_frame_ms": frame,
        "search_ms": statistics.median(searches),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
