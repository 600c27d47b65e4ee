"""Two forests side by side: a choice on one side shows its match on the other."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

from explore_page.conftest import Watched
from explore_page.made_api import MadeForest

ADDRESS = "#/compare?other=runs/second"


def side(page: Page, key: str) -> Locator:
    return page.get_by_role("tree", name=f"Features {key}")


def chosen(page: Page, key: str) -> Locator:
    return side(page, key).locator("[aria-selected=true]")


def test_a_choice_is_shown_on_both_sides_and_can_be_gone_back_to(watched: Watched, made: MadeForest) -> None:
    page = watched.open(ADDRESS)
    there, second = made.second.to, made.second
    expect(page.get_by_role("region", name="How much is shared")).to_contain_text(
        "by chance 2.0% (1.2% to 3.1%)"
    )
    # Far down: the other side is scrolled there.
    side(page, "here").evaluate("(rows) => { rows.scrollTop = 9999 }")
    side(page, "here").locator("#here-0").click()
    expect(chosen(page, "here")).to_contain_text("Monday · January · noon")
    expect(chosen(page, "there")).to_have_id(f"there-{there[0]}")
    expect(chosen(page, "there")).to_be_in_viewport()
    expect(page.locator(".links .chosen")).to_have_count(1)
    assert re.search(r"at=0\b", page.url)
    # The other way round, in a family that is opened for it here.
    mapping = page.get_by_role("region", name=re.compile(f"^The other SAE: {there[0]}"))
    expect(mapping).to_contain_text("6 children, of which 4 are under 0 here too")
    expect(mapping).to_contain_text("shuffled, 0.10 would be")
    kept = mapping.get_by_role("row").filter(has_text="kept").first
    kept.get_by_role("button").first.click()
    expect(chosen(page, "there")).to_have_attribute("aria-level", "2")
    expect(chosen(page, "here")).to_have_attribute("aria-level", "2")
    expect(chosen(page, "here")).to_contain_text("kept")
    assert second.cos[int(chosen(page, "here").locator(".id").inner_text())] > 0.7
    page.go_back()
    expect(chosen(page, "here")).to_have_id("here-0")
    page.go_back()
    expect(chosen(page, "here")).to_have_count(0)
    page.go_forward()
    expect(chosen(page, "there")).to_have_id(f"there-{there[0]}")


def test_the_keyboard_walks_both_lists(watched: Watched, made: MadeForest) -> None:
    page = watched.open(f"{ADDRESS}&at=48")
    expect(chosen(page, "there")).to_have_id(f"there-{made.second.to[48]}")
    side(page, "here").focus()
    page.keyboard.press("ArrowLeft")
    expect(chosen(page, "here")).to_have_id("here-0")
    page.keyboard.press("m")
    expect(side(page, "there")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(chosen(page, "there")).to_have_attribute("aria-level", "2")
    assert re.search(r"there=\d+", page.url)
    page.keyboard.press("m")
    before = int(chosen(page, "here").locator(".id").inner_text())
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text(str(before))
    page.go_back()
    expect(chosen(page, "here")).to_have_id(f"here-{before}")


def test_lists_are_filtered_and_say_what_they_hide(watched: Watched, made: MadeForest) -> None:
    page = watched.open(f"{ADDRESS}&at=48")
    page.get_by_role("combobox", name="Show").select_option("kept")
    second = made.second
    parent = made.parent
    kept = [
        f for f in range(made.n) if parent[f] >= 0 and second.to[parent[f]] == second.parent[second.to[f]]
    ]
    counted = [f for f in kept if min(second.cos[f], second.cos[parent[f]]) >= 0.7]
    heading = page.get_by_role("heading", name=re.compile("^This SAE"), level=2)
    expect(heading).to_contain_text(f"{len(counted)} features of 868")
    page.get_by_role("button", name="0.9").click()
    strict = [f for f in counted if min(second.cos[f], second.cos[parent[f]]) >= 0.9]
    expect(heading).to_contain_text(f"{len(strict)} features of 868")
    page.get_by_role("searchbox", name="Label", exact=True).fill("lovely")
    expect(page.get_by_text("The filter hides a part of the chosen pair.")).to_be_visible()
    page.get_by_role("searchbox", name="Label", exact=True).fill("no such label")
    expect(page.get_by_text("No feature matches these filters.")).to_have_count(2)


def test_another_sae_without_an_index_is_compared_without_texts(watched: Watched) -> None:
    page = watched.open("#/compare")
    expect(page.locator(".state.empty")).to_contain_text("Choose an SAE")
    page.get_by_role("combobox", name="with").select_option("runs/bare")
    side(page, "there").get_by_role("treeitem").first.click()
    lacking = page.locator(".state.lacking")
    expect(lacking).to_contain_text("saeforest index runs/bare")
    expect(chosen(page, "here")).to_be_in_viewport()
