"""Configurations: YAML and back, and one line naming file and key for every flaw."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from saeforest import InputError
from saeforest.config import TrainConfig, load_config, resolve_device, save_config, to_dict
from saeforest.optim import resolve_precision
from saeforest.presets import PRESETS
from saeforest.saes import TreeConfig


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), encoding="utf-8")
    return path


def one_line(path: Path) -> str:
    with pytest.raises(InputError) as error:
        load_config(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("text", "key"),
    [("tokens: yes", "tokens"), ("seed: true", "seed"), ("optim: {lr: on}", "optim.lr"),
     ("sae: {layer_sizes: [yes, 6], k_per_layer: [1, 1]}", "sae.layer_sizes.0"),
     ("saes: {a: {seed: true}}", "saes.a.seed"), ("activations: {max_norm: no}", "activations.max_norm")],
)  # fmt: skip
def test_yes_is_no_number(text: str, key: str, tmp_path: Path) -> None:
    """It was taken for 1, without a word."""
    assert f"key '{key}': expected a number" in one_line(write(tmp_path / "c.yaml", text))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (f"tokens: {10**20}", "tokens = 1000"),
        (f"epochs: {10**20}", "epochs = 1000"),
        (f"lm: {{batch_size: {10**20}}}", "lm.batch_size"),
        (f"text: {{context: {10**20}}}", "text.context"),
        (f"optim: {{batch_size: {10**20}}}", "optim.batch_size"),
        (f"sae: {{layer_sizes: [{10**20}]}}", "features; expected at most"),
        ("model: " + "x" * 5_000, "model: 5,000 characters; expected at most 4,096"),
        ("saes: {" + "x" * 101 + ": {}}", "101 characters; expected at most 100"),
        ("log_every: " + "[" * 5_000, "not valid YAML"),
        ("model: [" + "x" * 5_000 + "]", "key 'model': expected a valid string"),
        ("x" * 900 + ": 1", "unknown key 'xxx"),
    ],
)
def test_what_is_beyond_reason_is_refused(text: str, match: str, tmp_path: Path) -> None:
    assert match in one_line(write(tmp_path / "c.yaml", text))


@pytest.mark.parametrize("device", ["meta", "mps:0:0", "xla", "cuda:99", "x" * 5_000])
def test_a_device_that_nothing_can_run_on(device: str) -> None:
    with pytest.raises(InputError, match="device '") as error:
        resolve_device(device)
    assert len(str(error.value)) < 300


# Round trip


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_comes_back_from_yaml(name: str, tmp_path: Path) -> None:
    save_config(PRESETS[name], tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == PRESETS[name]
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_every_field_is_written_and_read(tmp_path: Path) -> None:
    """Also those at their default: the file holds the whole configuration."""

    def names(kind: Any) -> set[str]:
        return {
            name
            for f in dataclasses.fields(kind)
            for value in [getattr(kind, f.name)]
            for name in (
                {f"{f.name}.{n}" for n in names(value)} if dataclasses.is_dataclass(value) else {f.name}
            )
        }

    def keys(data: dict[str, Any]) -> set[str]:
        return {
            key
            for k, v in data.items()
            for key in ({f"{k}.{n}" for n in keys(v)} if v and isinstance(v, dict) else {k})
        }

    config = TrainConfig(target="blocks.15.hook_mlp_out")  # which is left out where there is none
    save_config(config, tmp_path / "config.yaml")
    data = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert keys(data) == names(config)
    assert {"sae.allocation.root_reset_at", "optim.precision", "activations.store", "seed"} <= keys(data)


def test_numbers_come_back_bit_for_bit(tmp_path: Path) -> None:
    config = dataclasses.replace(
        TrainConfig(),
        sae=TreeConfig(normalize_activations=0.1 + 0.2),
        optim=dataclasses.replace(TrainConfig().optim, lr=1e-4, eps=6.25e-10),
    )
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config


def test_keys_left_out_keep_their_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "c.yaml", {"tokens": 5000, "sae": {"layer_sizes": [40, 6, 8, 9]}}))
    assert config.tokens == 5000
    assert config.sae.layer_sizes == (40, 6, 8, 9) != TreeConfig().layer_sizes
    assert config.sae.k_per_layer == TreeConfig().k_per_layer
    assert config.optim == TrainConfig().optim


def test_scientific_notation_without_a_point_is_a_number(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 as text."""
    assert load_config(write(tmp_path / "c.yaml", "optim:\n  lr: 1e-3\n")).optim.lr == 1e-3


# Strict keys

DEPTHS = {
    "": "tokenz",
    "lm": "lm.dtyp",
    "text": "text.contxt",
    "activations": "activations.stor",
    "optim": "optim.learning_rate",
    "sae": "sae.layers",
    "sae.aux": "sae.aux.kk",
    "sae.allocation": "sae.allocation.frist",
}


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_misspelled_key_is_an_error_at_every_depth(depth: str, tmp_path: Path) -> None:
    data = to_dict(TrainConfig())
    inner = data
    for part in filter(None, depth.split(".")):
        inner = inner[part]
    inner[DEPTHS[depth].split(".")[-1]] = 1
    assert f"unknown key '{DEPTHS[depth]}'" in one_line(write(tmp_path / "c.yaml", data))


# Wrong types and ranges


def nested(key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {head: nested(rest, value) if rest else value}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", "many"),
        ("tokens", 1.5),
        ("tokens", None),
        ("tokens", [5]),
        ("model", 5),
        ("model", None),
        ("seed", "x"),
        ("lm", 5),
        ("lm", None),
        ("lm", []),
        ("lm.dtype", "float16"),
        ("text.context", "long"),
        ("activations.store", "cloud"),
        ("activations.exclude_first", "perhaps"),
        ("optim.lr", "fast"),
        ("optim.decay", "square"),
        ("optim", "adam"),
        ("sae.layer_sizes", 5),
        ("sae.layer_sizes", "5,6"),
        ("sae.layer_sizes", [5, "x"]),
        ("sae.k_per_layer", {"a": 1}),
        ("sae.normalize_activations", "batch_norm"),
        ("sae.architecture", "tee"),
        ("sae.aux", 3),
        ("sae.aux.layers", "all"),
        ("sae.allocation.first", "soon"),
        ("sae.allocation.growth", "triple"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_key(key: str, value: Any, tmp_path: Path) -> None:
    assert f"'{key}" in one_line(write(tmp_path / "c.yaml", nested(key, value)))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", 0),
        ("tokens", -5),
        ("epochs", 0),
        ("log_every", 0),
        ("checkpoint_minutes", NAN),
        ("checkpoint_minutes", -1.0),
        ("seed", 2**64),
        ("seed", -1),
        ("lm.batch_size", 0),
        ("text.context", 1),
        ("text.held_out", 0.0),
        ("text.held_out", 1.0),
        ("text.held_out", NAN),
        ("optim.batch_size", 0),
        ("optim.lr", 0.0),
        ("optim.lr", -1e-3),
        ("optim.lr", NAN),
        ("optim.lr", INF),
        ("optim.beta1", 1.0),
        ("optim.beta1", -0.1),
        ("optim.beta2", 1.0),
        ("optim.eps", -1e-9),
        ("optim.eps", NAN),
        ("optim.warmup", 1.5),
        ("optim.warmup", NAN),
        ("optim.decay_from", -0.1),
        ("sae.normalize_activations", 0.0),
        ("sae.normalize_activations", -2.0),
        ("sae.normalize_activations", NAN),
        ("sae.activation_threshold", -1e-3),
        ("sae.activation_threshold", NAN),
        ("sae.layer_sizes", []),
        ("sae.layer_sizes", [10, 0, 10, 10]),
        ("sae.layer_sizes", [100, 100]),
        ("sae.k_per_layer", [1, 1]),
        ("sae.k_per_layer", [1, 1, 1, 0]),
        ("sae.k_per_layer", [1, 1, 1, 10**9]),
        ("sae.aux.layers", [4]),
        ("sae.aux.layers", [-1]),
        ("sae.aux.k", 0),
        ("sae.aux.coefficient", NAN),
        ("sae.allocation.cap", 0),
        ("sae.allocation.root_reset_at", 1.1),
        ("sae.allocation.min_root_share", -0.1),
        ("sae.allocation.dead_after_tokens", 0),
        ("sae.allocation.eligible_within_tokens", 0),
    ],
)
def test_a_value_out_of_range_names_its_key(key: str, value: Any, tmp_path: Path) -> None:
    assert key in one_line(write(tmp_path / "c.yaml", nested(key, value)))


@pytest.mark.parametrize(
    "key", ["checkpoint_minutes", "sae.activation_threshold", "optim.warmup", "optim.beta1"]
)
def test_zero_is_allowed_where_it_means_something(key: str, tmp_path: Path) -> None:
    load_config(write(tmp_path / "c.yaml", nested(key, 0.0)))


# Files that are no configuration


def test_a_missing_file(tmp_path: Path) -> None:
    assert "no such file" in one_line(tmp_path / "none.yaml")


def test_a_folder(tmp_path: Path) -> None:
    assert "directory" in one_line(tmp_path).lower()


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "hello", "5", "null"])
def test_yaml_that_is_no_mapping(text: str, tmp_path: Path) -> None:
    assert "expected a mapping" in one_line(write(tmp_path / "c.yaml", text))


@pytest.mark.parametrize(
    "text", ["a: [1\n", "a: b: c\n", "\ttokens: 5\n", "tokens: !!python/object:os.system x\n"]
)
def test_text_that_is_no_safe_yaml(text: str, tmp_path: Path) -> None:
    assert "not valid YAML" in one_line(write(tmp_path / "c.yaml", text))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00tokens")
    assert "not valid YAML" in one_line(tmp_path / "c.yaml")


def test_a_key_that_is_no_text(tmp_path: Path) -> None:
    one_line(write(tmp_path / "c.yaml", {5: 6}))


# What "auto" means


def test_devices_and_precisions_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    for device in ("gpu", "", "cuda"):
        with pytest.raises(InputError, match=f"device '{device}'"):
            resolve_device(device)
    cpu = torch.device("cpu")
    assert resolve_precision("float32", cpu) == torch.float32
    assert resolve_precision("bfloat16", cpu) == torch.bfloat16
    assert resolve_precision("auto", cpu) in (torch.float32, torch.bfloat16)
