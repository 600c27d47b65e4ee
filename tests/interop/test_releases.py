"""SAELens' names of SAEs, with a list of releases as SAELens has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from saelens_folders import configure, write_saelens

import saeforest
from saeforest.errors import InputError
from saeforest.interop import hub
from saeforest.interop.hub import HubSAE
from saeforest.interop.releases import VARIABLE, Released, released

LIST = """\
gpt2-small-res-jb:
  conversion_func: null
  model: gpt2-small
  repo_id: jbloom/GPT2-Small-SAEs-Reformatted
  saes:
  - id: blocks.0.hook_resid_pre
    path: blocks.0.hook_resid_pre
    variance_explained: 0.999
  - id: blocks.1.hook_resid_pre
    path: blocks.1.hook_resid_pre
    norm_scaling_factor: 1.5
gemma-scope-2b-pt-res:
  conversion_func: gemma_2
  repo_id: google/gemma-scope-2b-pt-res
  saes:
  - id: layer_0/width_16k/average_l0_46
    path: layer_0/width_16k/average_l0_46
another-model:
  config_overrides:
    dataset_path: some/text
    hook_name: blocks.4.hook_resid_post
    model_name: gpt2-small
    model_from_pretrained_kwargs:
      center_writing_weights: true
  repo_id: some/repo
  saes:
  - id: only
    path: folder
another-code:
  config_overrides:
    apply_b_dec_to_input: false
  repo_id: some/repo
  saes:
  - id: only
    path: folder
whole-repo:
  repo_id: some/repo
  saes:
  - id: only
    path: .
llama_scope_lxr_8x:
  conversion_func: llama_scope
  repo_id: fnlp/Llama3_1-8B-Base-LXR-8x
  saes:
  - id: l0r_8x
    path: Llama3_1-8B-Base-L0R-8x
broken:
  model: nothing
"""


@pytest.fixture(autouse=True)
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "pretrained_saes.yaml"
    path.write_text(LIST)
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def test_where_the_saes_of_releases_are() -> None:
    assert released("gpt2-small-res-jb:blocks.0.hook_resid_pre") == Released(
        "jbloom/GPT2-Small-SAEs-Reformatted:blocks.0.hook_resid_pre", None
    )
    assert released("gpt2-small-res-jb:blocks.1.hook_resid_pre") == Released(
        "jbloom/GPT2-Small-SAEs-Reformatted:blocks.1.hook_resid_pre", 1.5
    )
    assert released("gemma-scope-2b-pt-res:layer_0/width_16k/average_l0_46") == Released(
        "google/gemma-scope-2b-pt-res:layer_0/width_16k/average_l0_46", None
    )
    assert released("whole-repo:only") == Released("some/repo", None)
    for other in ("org/repo", "org/repo:folder", "org/repo@main:folder", "a-folder"):
        assert released(other) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt2-small-res-jb:blocks.7", "no such id in this release.*blocks.0.hook_resid_pre, blocks.1"),
        ("gpt2-small:x", "release 'gpt2-small': not in .*it has gpt2-small-res-jb$"),
        ("llama_scope_lxr_8x:l0r_8x", "SAELens reads this release with 'llama_scope'"),
        ("another-code:only", r"the release replaces apply_b_dec_to_input of the SAE's own file"),
        ("broken:x", "release 'broken' has no 'repo_id'"),
    ],
)
def test_what_the_list_has_not(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        saeforest.load(name)


def test_without_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(InputError, match="install sae-lens beside saeforest"):
        saeforest.load("gpt2-small-res-jb:blocks.0.hook_resid_pre")
    monkeypatch.setenv(VARIABLE, "nowhere.yaml")
    with pytest.raises(InputError, match=r"nowhere.yaml: no such file"):
        saeforest.load("gpt2-small-res-jb:blocks.0.hook_resid_pre")


def test_a_release_is_loaded_with_its_factor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAELens folds the factor of its list in where the file says that it is still to be done."""
    folder = write_saelens(tmp_path / "sae", "standard")
    asked: list[HubSAE] = []

    def fetch(sae: HubSAE) -> Path:
        asked.append(sae)
        return folder

    monkeypatch.setattr(hub, "fetch", fetch)
    x = torch.randn(20, 12)
    with torch.no_grad():
        plain = saeforest.load(folder)(x)
        for index in (0, 1):
            found = saeforest.load(f"gpt2-small-res-jb:blocks.{index}.hook_resid_pre")
            assert torch.equal(found(x), plain)
        assert [sae.folder for sae in asked] == ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]
        configure(folder, normalize_activations="expected_average_only_in")
        with_factor = saeforest.load("gpt2-small-res-jb:blocks.1.hook_resid_pre")
        assert torch.equal(with_factor(x), saeforest.load(folder, activation_scale=1.5)(x))
        assert not torch.allclose(with_factor(x), plain)
    with pytest.raises(InputError, match="give it as activation_scale"):
        saeforest.load("gpt2-small-res-jb:blocks.0.hook_resid_pre")


def test_what_the_list_says_of_its_model_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SAELens puts it in place of what the file says; who reads the file alone takes the SAE for another model's."""
    folder = write_saelens(tmp_path / "sae", "standard")
    monkeypatch.setattr(hub, "fetch", lambda _: folder)
    sae = saeforest.load("another-model:only")
    assert sae.metadata["model_name"] == "gpt2"
    assert sae.metadata["hook_name"] == "blocks.4.hook_resid_post"
    assert saeforest.load(folder).metadata["hook_name"] != sae.metadata["hook_name"]
    assert "TransformerLens loaded with" in capsys.readouterr().err


def test_the_factor_of_an_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before SAELens 6, a file said true for what is now called expected_average_only_in."""
    folder = write_saelens(tmp_path / "sae", "standard")
    x = torch.randn(20, 12)
    configure(folder, normalize_activations="expected_average_only_in")
    with torch.no_grad():
        new = saeforest.load(folder, activation_scale=1.5)(x)
        old = {"normalize_activations": True, "metadata": {}, "sae_lens_version": "3.0.0"}
        configure(folder, **old)
        monkeypatch.setattr(hub, "fetch", lambda _: folder)
        assert torch.equal(saeforest.load("gpt2-small-res-jb:blocks.1.hook_resid_pre")(x), new)
