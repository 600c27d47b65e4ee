"""The page of the explorer in a browser: its views, its keys, what it writes, and what it must not do."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect

from explore_page.conftest import Watched
from explore_page.made_api import MadeForest
from explore_page.made_forest import HOSTILE

VIEWS = {
    "overview": "#/",
    "map": "#/map",
    "map-zoomed": "#/map?root=1&color=value%3Acos_decoder&at=52",
    "map-table": "#/map?table=1&color=density",
    "tree": "#/tree?open=.0.1&at=52",
    "families": "#/families?up=1",
    "feature": "#/feature/52",
    "family": "#/family/1",
    "edges": "#/edges?x=ungated&y=cos_decoder&brush=0.5_1_-1_1",
    "data": "#/data/1",
    "geometry": "#/geometry/1",
    "prompt": "#/prompt?text=Monday+follows+Sunday.",
    "training": "#/training",
    "compare": "#/compare?other=runs/second&at=52",
    "audit": "#/audit",
    "help": "#/help",
}
AXE = (files("axe_playwright_python") / "axe.min.js").read_text()


# Elements with text of which no two look alike: contrast is a matter of what an element and those around it are.
DISTINCT = """() => {
  const states = ["class", "style", "disabled", "aria-selected", "aria-pressed", "aria-current", "aria-sort"];
  const [seen, found] = [new Set(), []];
  const walk = (element, above) => {
    const look = [above, element.tagName, ...states.map((name) => element.getAttribute(name))].join("|");
    const says = [...element.childNodes].some(({ nodeType, data }) => nodeType === Node.TEXT_NODE && data.trim());
    if ((says || element.matches("input, textarea, select")) && !seen.has(look)) found.push(element);
    seen.add(look);
    for (const child of element.children) walk(child, look);
  };
  walk(document.body, "");
  return found;
}"""


@pytest.fixture(scope="session")
def shots() -> Path | None:
    """Where screenshots go: SAEFOREST_SCREENSHOTS; None if it is not set."""
    if not (name := os.environ.get("SAEFOREST_SCREENSHOTS")):
        return None
    Path(name).mkdir(parents=True, exist_ok=True)
    return Path(name)


def serious(page: Page) -> list[str]:
    """What axe finds serious or critical, one line each: by all of its rules but contrast."""
    return _axe(page, "axe.run({rules: {'color-contrast': {enabled: false}}, resultTypes: ['violations']})")


def too_faint(page: Page) -> list[str]:
    """Where axe finds too little contrast, one line each."""
    ask = (
        f"axe.run({{include: ({DISTINCT})()}}, {{runOnly: ['color-contrast'], resultTypes: ['violations']}})"
    )
    return _axe(page, ask)


def _axe(page: Page, ask: str) -> list[str]:
    if not page.evaluate("typeof axe !== 'undefined'"):
        page.evaluate(AXE)
    found = page.evaluate(f"() => {ask}.then((result) => result.violations)")
    return [
        f"{v['id']}: {node['html'][:160]} ({node['any'][0]['message'] if node['any'] else ''})"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"][:3]
    ]


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_can_be_read_by_all(watched: Watched, name: str, shots: Path | None) -> None:
    watched.complaints.clear()
    page = watched.open(VIEWS[name])
    assert page.locator("main .state.failed").count() == 0
    assert serious(page) == []
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert too_faint(page) == []
        if shots:
            page.screenshot(path=shots / f"{name}-{scheme}.png")
    # 125 % zoom on a laptop: nothing is cut off at the side.
    page.set_viewport_size({"width": 1093, "height": 614})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Nothing below the end: what is hidden does not lengthen the page.
    assert page.evaluate(
        "document.querySelector('footer').getBoundingClientRect().bottom + scrollY >= document.body.scrollHeight - 1"
    )
    page.set_viewport_size({"width": 1366, "height": 768})
    assert not watched.complaints
    assert not watched.outside()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("#/tree?open=.0.1&at=52", "#row-52"),
        ("#/compare?other=runs/second&at=52", "#here-52"),
        ("#/family/1?child=52", "tr"),
    ],
)
def test_an_address_says_what_is_chosen(watched: Watched, address: str, shown: str) -> None:
    page = watched.load(address)
    chosen = page.locator(f"{shown}:is([aria-selected=true], .selected)")
    expect(chosen).to_contain_text("incredible · amazing · awesome")
    expect(chosen).to_be_in_viewport()


def test_faint_text_and_nameless_buttons_are_found(watched: Watched) -> None:
    page = watched.open("#/help")
    assert too_faint(page) == serious(page) == []
    page.evaluate("document.documentElement.style.setProperty('--ink', '#bbb')")
    assert len(too_faint(page)) == 3
    page.evaluate("document.querySelector('main h1').outerHTML = '<button></button>'")
    assert "button-name" in serious(page)[0]
    watched.load("#/help")


def test_a_family_is_read_by_the_model_when_asked(watched: Watched, made: MadeForest) -> None:
    made.unread.add(3)
    page = watched.open("#/family/3")
    without = page.get_by_role("region", name="Without the gate")
    overlap = page.get_by_role("region", name="Sibling overlap")
    expect(overlap).to_contain_text("about 8,000 tokens")
    expect(overlap.get_by_role("button", name="Run the model")).to_be_visible()
    page.route("**/ungated/3", lambda route: route.fulfill(status=500, json={"error": "out of memory"}))
    without.get_by_role("button", name="Run the model").click()
    expect(without.get_by_role("alert")).to_contain_text("out of memory")
    waiting: list[Route] = []
    page.unroute("**/ungated/3")
    page.route("**/ungated/3", lambda route: waiting.append(route))
    without.get_by_role("button", name="Run the model again").click()
    expect(without.get_by_role("status")).to_contain_text("The model reads")
    expect(without.get_by_role("button")).to_have_count(0)
    while not waiting:
        page.wait_for_timeout(10)
    waiting[0].continue_()
    expect(without.get_by_role("heading", level=3)).not_to_have_count(0)
    expect(without).to_contain_text("8,192 tokens")
    expect(without.get_by_role("heading", level=2)).to_be_focused()
    expect(overlap.get_by_role("table")).to_be_visible()
    assert serious(page) == too_faint(page) == []
    page.unroute("**/ungated/3")
    # Away and back: the answer is still there.
    watched.open("#/help")
    watched.open("#/family/3")
    expect(without.get_by_role("heading", level=3)).not_to_have_count(0)
    expect(without.get_by_role("button")).to_have_count(0)


def test_a_family_says_how_much_is_left_and_marks_only_that(watched: Watched, made: MadeForest) -> None:
    page = watched.open("#/family/1")
    residue = page.get_by_role("region", name="Residue")
    shares = [kid["p_child"] for kid in made.family(1)["children"]]
    least, most = (f"{100 * share:.2g}%" for share in (max(0, 1 - sum(shares)), 1 - max(shares)))
    expect(residue).to_contain_text(f"at least {least} of its tokens")
    expect(residue).to_contain_text(f"at most {most}")
    contexts = residue.locator("[data-context]")
    expect(contexts).to_have_count(6)
    expect(residue.locator(".tok[class*=' l']")).to_have_count(6)
    expect(residue.locator(".tok.peak[class*=' l']")).to_have_count(6)


def test_a_number_beside_a_bound_is_not_rounded_across_it(watched: Watched, made: MadeForest) -> None:
    kids = [kid for kid in made.children[1] if not made.dead[kid]]
    shown = {"mid": (0.9496, "94.96%"), "high": (0.953, "95.3%"), "low": (0.4998, "49.98%")}
    places = made.places["ungated"].copy()
    try:
        for kid, (place, _) in zip(kids, shown.values(), strict=False):
            made.places["ungated"][kid] = place
        page = watched.load("#/family/1")
        for kid, (kind, (_, text)) in zip(kids, shown.items(), strict=False):
            row = page.locator(".children tr").filter(has=page.locator(f"a[href='#/feature/{kid}']"))
            expect(row.locator(f".gauge.{kind} .place")).to_have_text(text)
    finally:
        made.places["ungated"][:] = places
        watched.load("#/family/1")


def test_a_press_of_the_pointer_does_not_move_the_rows_away(watched: Watched) -> None:
    page = watched.open("#/tree")
    rows = page.get_by_role("tree", name="Features")
    expect(page.get_by_role("treeitem").first).to_be_visible()
    rows.evaluate("(rows) => { rows.scrollTop = 2000 }")
    row = page.get_by_role("treeitem").nth(20)
    expect(row).to_be_in_viewport()
    name = row.locator(".id").inner_text()
    row.hover()
    page.mouse.down()
    expect(rows).to_be_focused()
    page.wait_for_timeout(200)
    page.mouse.up()
    expect(page).to_have_url(re.compile(rf"at={name}\b"))


def test_search_finds_a_feature(watched: Watched) -> None:
    page = watched.open("#/")
    page.keyboard.press("/")
    page.keyboard.type("lovely")
    expect(page.get_by_role("option").first).to_contain_text("nice · lovely · pleasant")
    page.keyboard.press("Enter")
    row = page.get_by_role("treeitem").filter(has_text="nice · lovely · pleasant")
    expect(row).to_be_visible()
    assert "q=lovely" in page.url
    expect(page.get_by_role("status").filter(has_text="of 868")).to_be_visible()
    row.click()
    expect(page.get_by_role("complementary", name="Chosen feature")).to_contain_text("nice · lovely")
    watched.open("#/tree?q=%5ERhine.*Nile%24&re=1")
    expect(page.get_by_role("status").filter(has_text="feature")).to_have_text(re.compile("1 feature of 868"))
    watched.open("#/tree?q=%28&re=1")
    expect(page.get_by_role("alert")).to_contain_text("not a regular expression")
    page.locator("#search").fill("53")
    page.locator("#search").press("Enter")
    expect(page.locator("h1")).to_contain_text("nice · lovely")


def test_filters_keep_the_way_to_what_they_find(watched: Watched, made: MadeForest) -> None:
    page = watched.open("#/tree")
    page.get_by_role("combobox", name="Depth", exact=True).select_option("1")
    page.get_by_role("combobox", name="Beats null pairs").select_option("0.95")
    assert "depth=1" in page.url
    assert "pmin=0.95" in page.url
    found = [f for f in range(48, 268) if made.places["ungated"][f] >= 0.95 and made.parent[f] < 48]
    expect(page.locator(".tally")).to_contain_text(f"{len(found)} features of 868")
    page.go_back()
    expect(page.locator(".tally")).to_contain_text("220 features of 868")
    page.go_back()
    expect(page.locator(".tally")).to_have_text(re.compile("^868 features"))
    page.go_forward()
    expect(page.locator(".tally")).to_contain_text("220 features of 868")


def test_what_is_typed_is_found_below_the_field(watched: Watched) -> None:
    page = watched.open("#/help")
    page.locator("#search").press_sequentially("lovely")
    found = page.get_by_role("option")
    expect(found.first).to_contain_text("nice · lovely")
    assert serious(page) == too_faint(page) == []
    page.keyboard.press("ArrowDown")
    expect(page.locator("#search")).to_have_attribute("aria-activedescendant", "found-53")
    page.keyboard.press("Escape")
    expect(found).to_have_count(0)
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type(" ")
    page.keyboard.press("Backspace")
    expect(found.first).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("nice · lovely")
    # In the tree, the list follows: the most relevant first, and going back leads to where the search began.
    page.locator("#search").fill("left behind")
    page = watched.open("#/tree?at=52")
    expect(page.locator("#search")).to_be_empty()
    page.locator("#search").press_sequentially("lovely")
    expect(page).to_have_url(re.compile("q=lovely"))
    expect(page.locator("[role=treeitem]").first).to_contain_text("incredible · nice · weird")
    page.go_back()
    expect(page.locator("h1")).to_contain_text("nice · lovely")


def test_bounds_and_order_are_in_the_address(watched: Watched, made: MadeForest) -> None:
    places = made.places["ungated"]
    under = [f for f in range(48, 268) if places[f] <= 0.5]
    page = watched.open("#/tree?depth=1&col=ungated&pmax=0.5&sort=place%3Aungated&up=1")
    expect(page.locator(".tally")).to_contain_text(f"{len(under)} features of 868")
    page.get_by_role("button", name="Reversed order").click()
    assert "up=1" not in page.url
    failing = [f for f in range(48, 868) if places[f] <= 0.05]
    page = watched.open("#/edges?x=ungated&pmax=0.05&sort=x-place&up=1")
    expect(page.locator(".tally")).to_contain_text(f"{len(failing)} edges, of")
    first = page.locator(".table-box tbody tr").first.locator("td").nth(1)
    expect(first).to_contain_text(str(min(failing, key=lambda f: places[f])))


def test_families_that_fail_come_first_when_asked(watched: Watched, made: MadeForest) -> None:
    kids = {p: [made.places["ungated"][c] for c in of if not made.dead[c]] for p, of in made.children.items()}
    middles = {p: float(np.median(of)) for p, of in kids.items() if len(of) >= 3}
    page = watched.open("#/families")
    first = page.locator(".table-box tbody tr").first
    expect(first).to_contain_text(str(max(middles, key=lambda p: middles[p])))
    page.get_by_role("button", name="Worst first").click()
    assert "up=1" in page.url
    expect(first).to_contain_text(str(min(middles, key=lambda p: middles[p])))
    expect(page.locator(".tally")).to_contain_text(
        f"{len(middles)} families of {sum(map(bool, kids.values()))}"
    )


def test_a_word_explains_itself(watched: Watched) -> None:
    page = watched.open("#/edges")
    word = page.get_by_role("link", name="null pairs", exact=True)
    word.focus()
    expect(page.get_by_role("tooltip")).to_contain_text("parents have changed places")
    assert word.evaluate("(link) => document.getElementById(link.getAttribute('aria-describedby')) !== null")
    assert serious(page) == too_faint(page) == []
    page.keyboard.press("Escape")
    expect(page.get_by_role("tooltip")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.locator("#word-null")).to_be_focused()
    expect(page.locator("#word-null")).to_be_in_viewport()


def test_the_keyboard_alone_walks_the_tree(watched: Watched) -> None:
    page = watched.open("#/tree?sort=id")
    tree = page.get_by_role("tree")
    tree.focus()
    selected = page.locator("[role=treeitem][aria-selected=true]")
    expect(selected).to_contain_text("Monday · January · noon")
    page.keyboard.press("ArrowDown")
    expect(selected).to_contain_text("incredible · nice · weird")
    assert tree.get_attribute("aria-activedescendant") == selected.get_attribute("id")
    expect(selected).to_have_attribute("aria-expanded", "false")
    page.keyboard.press("ArrowRight")
    expect(selected).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowRight")
    expect(selected).to_have_attribute("aria-level", "2")
    first = selected.inner_text()
    page.keyboard.press("ArrowDown")
    assert selected.inner_text() != first
    page.keyboard.press("ArrowLeft")
    expect(selected).to_contain_text("incredible · nice · weird")
    page.keyboard.press("End")
    expect(selected).to_be_in_viewport()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("Monday · January · noon")
    for key, expected in (
        ("c", "noon"),
        ("]", "January"),
        ("p", "Monday · January"),
        ("f", "Monday · January"),
    ):
        page.keyboard.press(key)
        expect(page.locator("h1")).to_contain_text(expected)
    assert "#/family/0" in page.url
    expect(page.locator(".context").first).to_be_visible()
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.matches('[data-context]')")
    page.keyboard.press("?")
    expect(page.locator("h1")).to_have_text("Help")


def test_what_a_person_writes_stays(watched: Watched) -> None:
    page = watched.open("#/feature/55")
    page.get_by_role("textbox", name="Label", exact=True).fill("worth a look")
    page.get_by_role("textbox", name="Label", exact=True).press("Enter")
    page.get_by_role("textbox", name="Note", exact=True).fill("ask someone")
    page.get_by_role("textbox", name="Note", exact=True).blur()
    page.get_by_role("button", name="Bookmark").click()
    page.get_by_role("button", name="Yes", exact=True).click()
    expect(page.get_by_text("Edge to 55 rated")).to_be_visible()
    page = watched.load("#/feature/55")
    expect(page.locator("h1")).to_contain_text("worth a look")
    expect(page.get_by_role("textbox", name="Note", exact=True)).to_have_value("ask someone")
    expect(page.get_by_role("button", name="Bookmark")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="Yes", exact=True)).to_have_attribute("aria-pressed", "true")
    page = watched.open("#/tree?only=bookmarked")
    expect(page.locator("[role=treeitem]:not(.way)")).to_contain_text(["worth a look"])


def test_the_blind_audit_tells_only_afterwards(watched: Watched, made: MadeForest) -> None:
    page = watched.open("#/audit")
    for _ in range(2):
        expect(page.get_by_role("region", name="Parent")).to_be_visible()
        assert page.locator(".columns-even .feature-link").count() == 0
        page.keyboard.press("y")
        expect(page.locator(".verdict")).to_contain_text(re.compile("edge of the tree|null pair"))
        page.keyboard.press("x")
        expect(page.locator(".verdict")).to_be_empty()
    assert [sum(row.values()) for row in made.tally.values()] == [1, 1]


def test_an_edge_is_chosen_in_the_table_and_by_a_rectangle(watched: Watched) -> None:
    page = watched.open("#/edges?x=ungated&y=cos_decoder")
    page.get_by_role("button", name="Coverage without the gate").click()
    assert "sort=x" in page.url
    area = page.locator(".scatter canvas").bounding_box()
    assert area
    page.mouse.move(area["x"] + 300, area["y"] + 20)
    page.mouse.down()
    page.mouse.move(area["x"] + 500, area["y"] + 350)
    page.mouse.up()
    expect(page.locator(".tally")).to_contain_text("in the rectangle")
    page.locator(".table-box").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("tr.selected")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("navigation", name="Views of this feature")).to_be_visible()


def test_text_of_a_model_is_inert(watched: Watched, made: MadeForest) -> None:
    page = watched.open(f"#/feature/{made.n - 1}")
    shown = page.locator("main").inner_text()
    assert "<script>alert(1)</script>⟨U+202E⟩gnp.exe⟨U+0007⟩" in shown
    assert HOSTILE not in shown
    assert page.locator("main script").count() == 0


def test_what_is_missing_says_what_to_do(watched: Watched) -> None:
    page = watched.open("#/feature/99999")
    expect(page.get_by_role("alert")).to_contain_text("0 to 867")
    page = watched.open("#/nowhere")
    expect(page.get_by_role("alert")).to_contain_text("no view")
    page = watched.open("#/compare?other=runs/none")
    expect(page.get_by_role("alert")).to_contain_text("no such run")
    page.route("**/api/v1/family/2", lambda route: route.abort())
    page = watched.open("#/family/2")
    expect(page.get_by_role("alert")).to_contain_text("Is “saeforest explore” still running")
    page.unroute("**/api/v1/family/2")


def test_counts_of_edges_say_what_they_count(watched: Watched, made: MadeForest) -> None:
    page = watched.open("#/")
    n_edges = int((made.parent >= 0).sum())
    alive = int(((made.parent >= 0) & (made.dead == 0)).sum())
    assert alive < n_edges
    real = page.get_by_role("region", name="Is the hierarchy real?")
    expect(real).to_contain_text(f"The forest has {n_edges} edges")
    expect(real).to_contain_text(f"{alive} edges, where the child fires: “Coverage")
    expect(page.locator("main")).to_contain_text("the child fires 20 times or more")
