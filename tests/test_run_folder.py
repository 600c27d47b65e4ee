"""Where the files of a run are, and what its SAEs are called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llama_cases import MakeConfig
from saeforest.config import MemberConfig, TrainConfig
from saeforest.errors import InputError
from saeforest.run_folder import RunFolder
from saeforest.saes import TopKConfig, TreeConfig

SINGLE = TrainConfig(sae=TopKConfig())
SEVERAL = TrainConfig(saes={"a": MemberConfig(TreeConfig()), "b": MemberConfig(TopKConfig())})
ONE_OF_SEVERAL = TrainConfig(saes={"a": MemberConfig(TreeConfig())})
# Once written down, files lie where they were looked for when they were written.
SHARED = {
    "config_file": "config.yaml",
    "model_file": "model.json",
    "demo_file": "demo.json",
    "checkpoints": "checkpoints",
    "activations": "activations",
    "records": "eval",
}
PARTS = {
    "sae": ("sae", "sae/b"),
    "logs": (".", "logs/b"),
    "eval": ("eval", "eval/b"),
    "forest": ("forest", "forest/b"),
    "index": ("index", "index/b"),
    "unfinished_index": ("index.unfinished", "index.unfinished/b"),
}


def begun(folder: Path, config: TrainConfig) -> RunFolder:
    run = RunFolder(folder)
    run.save_config(config)
    return run


def test_what_a_run_has_once(tmp_path: Path) -> None:
    """No configuration is needed to know where it is."""
    run = RunFolder(tmp_path / "run")
    for name, place in SHARED.items():
        assert getattr(run, name) == tmp_path / "run" / place, name
    assert not run.path.exists()


@pytest.mark.parametrize(("part", "places"), PARTS.items())
def test_what_a_run_has_for_each_sae(part: str, places: tuple[str, str], tmp_path: Path) -> None:
    single, several = begun(tmp_path / "single", SINGLE), begun(tmp_path / "several", SEVERAL)
    assert getattr(single, part)("topk") == single.path / places[0]
    assert getattr(several, part)("b") == several.path / places[1]


def test_the_record_of_a_measure(tmp_path: Path) -> None:
    single, several = begun(tmp_path / "single", SINGLE), begun(tmp_path / "several", SEVERAL)
    assert single.record("topk", "dead") == single.path / "eval" / "dead.json"
    assert several.record("a", "dead") == several.path / "eval" / "a" / "dead.json"


def test_names(tmp_path: Path) -> None:
    """A single SAE is called by its architecture; one that was given a name keeps that, and folders of its own."""
    single, several = begun(tmp_path / "single", SINGLE), begun(tmp_path / "several", SEVERAL)
    assert (single.names(), single.several) == (["topk"], False)
    assert (several.names(), several.several) == (["a", "b"], True)
    one = begun(tmp_path / "one", ONE_OF_SEVERAL)
    assert (one.names(), one.several, one.sae("a")) == (["a"], True, one.path / "sae" / "a")


def test_the_run_around_a_folder(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", SEVERAL)
    (tmp_path / "run" / "index" / "a").mkdir(parents=True)
    for part, name in ((run.path, None), (run.index("a").parent, None), (run.index("a"), "a")):
        assert RunFolder.around(part) == run
        assert run.name_of(part) == name
        assert run.sae_beside(part) == (run.sae(name) if name else run.path / "sae")
    assert RunFolder.around(tmp_path) is None


def test_what_is_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"no config\.yaml; expected a run folder"):
            RunFolder(folder).names()
        with pytest.raises(InputError, match=r"no config\.yaml; expected a run folder"):
            RunFolder(folder).load()


def test_loading(finished_run: Path, tiny_config: MakeConfig, tmp_path: Path) -> None:
    run = RunFolder(finished_run)
    config, sae = run.load()
    assert (config, sae.config.architecture) == (run.config(), "tree")
    assert run.load("tree")[0] == config
    with pytest.raises(InputError, match=re.escape(f"{run}: holds no SAE named 'b', but one: tree")):
        run.load("b")
    with pytest.raises(InputError, match="no trained SAE yet; finish it with `saeforest train --resume"):
        begun(tmp_path / "begun", tiny_config()).load()
    several = begun(tmp_path / "several", SEVERAL)
    several.sae("a").mkdir(parents=True)
    for name in (None, "c"):
        with pytest.raises(InputError, match="holds several SAEs; name one of them: a, b"):
            several.load(name)


def test_the_folder_of_an_sae_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(InputError, match="the folder of an SAE; expected that of a run"):
        RunFolder(tmp_path).config()
