"""The model of a run, of its activations and of its SAE: compared by what it is, not by how it is spelled."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama_cases import MakeConfig, save_llama
from saeforest.activations import harvest_folder, open_store
from saeforest.config import TrainConfig
from saeforest.errors import InputError
from saeforest.evaluation import Source, make_task
from saeforest.lm import load_lm
from saeforest.saes import load_sae
from saeforest.session import about_activations, check_site, open_reader, read_tokens
from saeforest.training.settle import settle_harvest, settle_machine, settle_positions


@pytest.fixture(scope="module")
def store(tiny_config: MakeConfig, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Activations that were harvested with the model's path as somebody in its folder would type it."""
    folder = tmp_path_factory.mktemp("harvest") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_model.parent)
        config = settle_machine(tiny_config(model=f"./{tiny_model.name}/", tokens=512))
        reader = open_reader(config)
        tokens = read_tokens(config, reader, "train", config.tokens)
        config = settle_positions(config, reader, tokens)
        harvest_folder(reader, tokens, folder, about_activations(config, tokens, reader))
    return folder


def test_metadata_and_manifest_say_which_model(finished_run: Path, store: Path, tiny_model: Path) -> None:
    identity = load_lm(str(tiny_model)).identity
    metadata = load_sae(finished_run / "sae").metadata
    assert {key: metadata[key] for key in identity.to_dict()} == identity.to_dict()
    manifest = open_store(store).manifest
    assert manifest["model"] == identity.name == str(tiny_model)
    assert manifest["model_fingerprint"] == identity.fingerprint
    assert manifest["model_revision"] == ""


def test_activations_and_sae_are_accepted_whatever_the_spelling(
    finished_run: Path, store: Path, tiny_config: MakeConfig, tiny_model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(tiny_model, tmp_path / "copy")
    (tmp_path / "link").symlink_to(tiny_model)
    monkeypatch.chdir(tmp_path)
    for model in (str(tiny_model) + "/", os.path.relpath(tiny_model), "copy", "link"):
        config: TrainConfig = tiny_config(model=model, data=str(store))
        assert settle_harvest(config).tokens == 512
        check_site(load_sae(finished_run / "sae"), open_reader(config))
    capsys.readouterr()
    assert settle_harvest(replace(config, tokens=300)).tokens == 288
    assert settle_harvest(TrainConfig(data=str(store))).tokens == 512
    assert capsys.readouterr().err == ""
    assert settle_harvest(replace(config, tokens=600)).tokens == 512
    assert "tokens = 600, but it has only 512; all are read" in capsys.readouterr().err
    with pytest.raises(InputError, match="tokens = 31: expected at least one window of 32 tokens"):
        settle_harvest(replace(config, tokens=31))


def test_another_model_of_the_same_shape_is_refused_everywhere(
    finished_run: Path, store: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    other = save_llama(tmp_path / "other", damage=lambda model: model.lm_head.weight.data.mul_(1.5))
    config: TrainConfig = tiny_config(model=str(other), data=str(store))
    with pytest.raises(InputError, match="activations of model") as info:
        settle_harvest(config)
    assert "\n" not in str(info.value)
    reader, sae = open_reader(config), load_sae(finished_run / "sae")
    with pytest.raises(InputError, match="the SAE was trained on model") as info:
        check_site(sae, reader)
    assert str(other) in str(info.value)
    sae.metadata = {"hook_name": config.site}  # says nothing of a model
    check_site(sae, reader)


def test_a_record_says_which_model(finished_run: Path, tiny_config: MakeConfig) -> None:
    config: TrainConfig = tiny_config()
    reader, sae = open_reader(config), load_sae(finished_run / "sae")
    tokens = read_tokens(config, reader, "held_out", 64)
    task = make_task(sae, (), reader, tokens, Source("text", "held_out", 0, "sae"))
    identity = reader.lm.identity
    assert task.settings["model"] == identity.name
    assert task.settings["model_fingerprint"] == identity.fingerprint != ""
    assert torch.equal(tokens.ids, read_tokens(config, reader, "held_out", 64).ids)
