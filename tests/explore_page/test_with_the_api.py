"""The page on the explorer's own server: both keep the same contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from explore_cases import World, byte_tokenizer
from explore_page.conftest import Watched, watching
from explore_page.real_server import running
from saeforest.explore import Explorer
from saeforest.explore.api import Api
from saeforest.explore.api.compare import Opened
from saeforest.explore.labels.annotations import Annotations
from saeforest.saes import TreeSAE

# Those that this little run lacks something for; `test_demo_command.py` opens all on a whole one.
VIEWS = ["", "feature/3", "geometry/2", "prompt", "training", "compare?other=second&at=12"]


@pytest.fixture(scope="module")
def real(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    small = World(TreeSAE, documents=7)
    annotations = Annotations(tmp_path_factory.mktemp("run") / "annotations.sqlite")
    explorer = Explorer(small.index, small.sae.forest, byte_tokenizer())
    others = {"second": lambda: Opened(small.sae, small.sae.forest, Api(explorer, sae=small.sae))}
    api = Api(explorer, annotations, sae=small.sae, others=others)
    with running(api) as url, watching(browser, url) as watched:
        yield watched


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_shows_what_the_server_answers(real: Watched, view: str) -> None:
    real.complaints.clear()
    page = real.open(f"#/{view}")
    expect(page.locator("h1")).to_be_visible()
    assert page.locator("main .state.failed").count() == 0
    # What this little run lacks is said in a line, without being asked for.
    if page.locator("main .state.lacking").count():
        assert view in ("", "feature/3", "geometry/2", "prompt", "training")
    assert not real.complaints
    assert not real.outside()


def test_an_sae_without_a_run_is_not_told_to_measure_it(real: Watched) -> None:
    expect(real.open("#/").locator("main")).to_contain_text("No measures: this SAE belongs to no run")


def test_without_a_model_none_is_offered(real: Watched) -> None:
    without = real.open("#/family/2").get_by_role("region", name="Without the gate")
    expect(without).to_contain_text("language model is not known")
    expect(without.get_by_role("button")).to_have_count(0)


def test_a_family_is_saved_as_a_file(real: Watched, tmp_path: Path) -> None:
    page = real.open("#/family/2")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save this family").click()
    assert download.value.suggested_filename == "SAE-2.html"
    download.value.save_as(tmp_path / "family.html")
    assert '"start":"#/family/2"' in (tmp_path / "family.html").read_text(encoding="utf-8")
    expect(page.locator("main").get_by_role("status")).to_contain_text("Saved as SAE-2.html")


def test_a_label_is_kept_by_the_server(real: Watched) -> None:
    page = real.open("#/feature/3")
    label = page.get_by_role("textbox", name="Label", exact=True)
    label.fill("mine")
    label.press("Enter")
    expect(page.get_by_text("Saved feature 3.")).to_be_visible()
    page = real.load("#/feature/3")
    expect(page.locator("h1")).to_contain_text("mine")
    expect(page.locator("h1")).to_contain_text("by hand")
    page.get_by_role("textbox", name="Label", exact=True).fill("")
    page.get_by_role("textbox", name="Label", exact=True).blur()
    expect(page.get_by_text("Saved feature 3.")).to_be_visible()
    expect(page.locator("h1")).not_to_contain_text("mine")


def test_a_pair_is_rated_blind_by_the_server(real: Watched) -> None:
    page = real.open("#/audit")
    page.get_by_role("group", name="Rating").get_by_role("button", name="Unsure").click()
    expect(page.get_by_role("region", name="Your tally")).not_to_contain_text("Nothing rated yet")
