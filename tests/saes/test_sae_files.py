"""A saved SAE comes back bit for bit, in the layout that is fixed; a damaged one is one line naming the file."""

from __future__ import annotations

import errno
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import saeforest
from edits import edit_json, forget_checksums
from saeforest import InputError, files
from saeforest.saes import AllocationConfig, TreeAuxConfig, TreeConfig, TreeSAE, load_sae, save_sae

SIZES, K, D = (5, 7, 9), (2, 2, 1), 6
D_SAE = sum(SIZES)
CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
METADATA = {
    "model_name": "tiny",
    "hook_name": "blocks.0.hook_resid_post",
    "tokens": 7,
    "nested": {"a": [1, 2.5]},
}


def make_sae(normalize: Any = "layer_norm", seed: int = 3) -> TreeSAE:
    config = TreeConfig(
        layer_sizes=SIZES,
        k_per_layer=K,
        normalize_activations=normalize,
        activation_threshold=0.002,
        aux=TreeAuxConfig(layers=(0,)),
        allocation=AllocationConfig(first=5),
    )
    sae = TreeSAE(config, D, seed=seed)
    with torch.no_grad():
        sae.b_dec.normal_(generator=torch.Generator().manual_seed(seed))
    sae.metadata = dict(METADATA)
    return sae.eval()


def activations() -> torch.Tensor:
    return 3 * torch.randn(40, D, generator=torch.Generator().manual_seed(9)) + 1


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_sae(make_sae(), tmp_path / "sae")
    return tmp_path / "sae"


# Round trip


@pytest.mark.parametrize("normalize", ["layer_norm", "none", 0.1234567890123])
def test_everything_comes_back_bit_for_bit(tmp_path: Path, normalize: Any) -> None:
    sae = make_sae(normalize)
    save_sae(sae, tmp_path / "sae")
    again = load_sae(tmp_path / "sae")
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "parent"):
        assert torch.equal(getattr(again, name), getattr(sae, name)), name
        assert getattr(again, name).dtype == getattr(sae, name).dtype
    for name in (
        "architecture",
        "layer_sizes",
        "k_per_layer",
        "normalize_activations",
        "activation_threshold",
    ):
        assert getattr(again.config, name) == getattr(sae.config, name), name
    assert again.metadata == METADATA
    assert not again.training
    x = activations()
    ours, theirs = sae.encode(x), again.encode(x)
    assert int(ours.active().sum()) > 40
    assert torch.equal(ours.values, theirs.values)
    assert torch.equal(ours.ids, theirs.ids)
    assert torch.equal(sae(x), again(x))
    assert torch.equal(sae.forest.parent, again.forest.parent)
    assert len(sae.forest.roots) < D_SAE


def test_a_second_save_writes_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    save_sae(load_sae(saved), tmp_path / "again")
    for name in (CFG, WEIGHTS):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_cfg_has_exactly_the_fixed_keys(saved: Path) -> None:
    cfg = json.loads((saved / CFG).read_text())
    assert set(cfg) == {
        "architecture",
        "d_in",
        "d_sae",
        "layer_sizes",
        "k_per_layer",
        "normalize_activations",
        "apply_b_dec_to_input",
        "activation_threshold",
        "dtype",
        "format_version",
        "sae_lens_version",
        "reshape_activations",
        "parent",
        "metadata",
        "checksum",
        "checksums",
    }
    assert (cfg["architecture"], cfg["d_in"], cfg["d_sae"], cfg["dtype"]) == ("tree", D, D_SAE, "float32")
    assert cfg["layer_sizes"] == list(SIZES)
    assert cfg["k_per_layer"] == list(K)
    assert cfg["normalize_activations"] == "layer_norm"
    assert cfg["apply_b_dec_to_input"] is True
    assert cfg["format_version"] == 1
    assert cfg["parent"] == make_sae().parent.tolist()


def test_the_weights_file_has_the_fixed_tensors(saved: Path) -> None:
    weights = load_file(saved / WEIGHTS)
    assert {name: (list(t.shape), t.dtype) for name, t in weights.items()} == {
        "W_enc": ([D, D_SAE], torch.float32),
        "W_dec": ([D_SAE, D], torch.float32),
        "b_enc": ([D_SAE], torch.float32),
        "b_dec": ([D], torch.float32),
        "parent": ([D_SAE], torch.int64),
    }
    sae = make_sae()
    assert torch.equal(weights["W_enc"].T, sae.encoder)
    assert torch.equal(weights["W_dec"], sae.decoder)
    torch.testing.assert_close(weights["W_dec"].norm(dim=1), torch.ones(D_SAE), atol=1e-6, rtol=0)


def test_the_folder_holds_two_files_and_no_pickle(saved: Path) -> None:
    assert {p.name for p in saved.iterdir()} == {CFG, WEIGHTS}
    for file in saved.iterdir():
        assert not file.read_bytes().startswith((b"PK", b"\x80"))
        with pytest.raises(pickle.UnpicklingError):
            pickle.loads(file.read_bytes())


def test_nothing_of_the_library_can_unpickle() -> None:
    source = Path(saeforest.__file__).parent
    texts = {path: path.read_text(encoding="utf-8") for path in source.rglob("*.py")}
    for word in ("import pickle", "joblib", "allow_pickle=True"):
        assert not [path for path, text in texts.items() if word in text]
    # One other tool writes nothing but PyTorch's own files: read by the unpickler that makes tensors alone.
    readers = {str(path.relative_to(source)): text for path, text in texts.items() if "torch.load(" in text}
    assert readers.keys() == {"interop/dictionary_learning.py"}
    for text in readers.values():
        assert text.count("torch.load(") == text.count("weights_only=True)") == 1
    # Two other tools read nothing but PyTorch's own files.
    writers = {str(path.relative_to(source)) for path, text in texts.items() if "torch.save(" in text}
    assert writers == {"interop/lm_eval.py", "interop/delphi.py"}


def test_a_run_folder_and_its_sae_folder_load_alike(finished_run: Path) -> None:
    run, inner = saeforest.load(str(finished_run)), saeforest.load(finished_run / "sae")
    assert torch.equal(run.W_enc, inner.W_enc)
    assert run.metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert {"model_name", "hook_name", "context_size", "dataset", "tokens", "seed", "version"} <= set(
        run.metadata
    )


# Damage


def one_line(folder: Path, names: str) -> str:
    with pytest.raises(InputError) as error:
        load_sae(folder)
    message = str(error.value)
    assert "\n" not in message
    assert str(folder) in message
    assert names in message
    assert len(message) < 600
    return message


def edit_cfg(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_json(folder / CFG, change)


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / WEIGHTS)
    forget_checksums(folder)


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "no such folder" in one_line(tmp_path / "none", "none")


@pytest.mark.parametrize("name", [CFG, WEIGHTS])
def test_a_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    assert "no such file" in one_line(saved, name)


@pytest.mark.parametrize("name", [CFG, WEIGHTS])
def test_a_folder_in_place_of_a_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    (saved / name).mkdir()
    one_line(saved, name)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_truncated_weights(saved: Path, share: float) -> None:
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[: int(share * len(data))])
    assert "does not match its checksum" in one_line(saved, WEIGHTS)
    forget_checksums(saved)
    assert "not a whole safetensors file" in one_line(saved, WEIGHTS)


def test_weights_of_another_kind(saved: Path) -> None:
    (saved / WEIGHTS).write_bytes(pickle.dumps({"W_enc": [1.0] * 1000}))
    forget_checksums(saved)
    assert "not a whole safetensors file" in one_line(saved, WEIGHTS)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", "null", '"tree"', "\xff\xfe", '{"architecture": "tree"'], ids=repr
)
def test_cfg_that_is_no_json_object(saved: Path, content: str) -> None:
    (saved / CFG).write_bytes(content.encode("latin-1"))
    one_line(saved, CFG)


@pytest.mark.parametrize(
    "key",
    [
        "architecture",
        "d_in",
        "d_sae",
        "layer_sizes",
        "k_per_layer",
        "normalize_activations",
        "activation_threshold",
    ],
)
def test_a_missing_key(saved: Path, key: str) -> None:
    edit_cfg(saved, lambda cfg: cfg.pop(key))
    assert key in one_line(saved, CFG)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architecture", "tee"),
        ("architecture", ["tree"]),
        ("architecture", None),
        ("format_version", 2),
        ("format_version", "1"),
        ("format_version", None),
        ("d_in", None),
        ("d_in", "6"),
        ("d_in", True),
        ("d_in", 0),
        ("d_in", -6),
        ("d_in", 6.5),
        ("d_sae", 22),
        ("d_sae", "21"),
        ("layer_sizes", "5, 7, 9"),
        ("layer_sizes", 21),
        ("layer_sizes", [5, "x", 9]),
        ("layer_sizes", [5, 7]),
        ("layer_sizes", []),
        ("layer_sizes", [5, 7, 0]),
        ("k_per_layer", [2, 2]),
        ("k_per_layer", [2, 2, 10]),
        ("k_per_layer", None),
        ("normalize_activations", "expected_average_only_in"),
        ("normalize_activations", "dataset_scale"),
        ("normalize_activations", 0),
        ("normalize_activations", -1.5),
        ("activation_threshold", "low"),
        ("activation_threshold", -0.1),
        ("apply_b_dec_to_input", False),
        ("metadata", ["a"]),
        ("d_in", 6.0),
        ("d_in", 10**30),
        ("k_per_layer", ["1", "2", "2"]),
        ("activation_threshold", "0.1"),
        ("format_version", True),
        ("format_version", 0),
        ("format_version", "x" * 100_000),
        ("architecture", "x" * 100_000),
        ("layer_sizes", "x" * 100_000),
        ("metadata", "a"),
        ("metadata", None),
    ],
)
def test_a_wrong_value_in_cfg(saved: Path, key: str, value: Any) -> None:
    edit_cfg(saved, lambda cfg: cfg.update({key: value}))
    assert key in one_line(saved, CFG)


def test_sizes_beyond_memory_are_told_before_they_are_allocated(saved: Path) -> None:
    most = 2**31 - 1
    edit_cfg(saved, lambda cfg: cfg.update(d_sae=most, layer_sizes=[most], k_per_layer=[1]))
    assert "W_enc" in one_line(saved, WEIGHTS)
    edit_cfg(saved, lambda cfg: cfg.update(d_sae=most + 1, layer_sizes=[most + 1]))
    assert "2,147,483,648 features; expected at most 2,147,483,647" in one_line(saved, CFG)


@pytest.mark.parametrize("name", ["W_dec", "parent"])
def test_a_tensor_of_a_type_that_nothing_can_be_done_with(saved: Path, name: str) -> None:
    edit_weights(saved, lambda weights: weights.update({name: weights[name].to(torch.float8_e4m3fn)}))
    assert f"tensor '{name}' has dtype torch.float8_e4m3fn" in one_line(saved, WEIGHTS)


@pytest.mark.parametrize(
    "metadata",
    [{"model_name": 3}, {"hook_name": ["a"]}, {"dataset": {}}, {"dataset_path": True}, {"x": "y" * 5_000},
     {"x" * 5_000: 1}, {"a": {"b": [1, {"c": "y" * 5_000}]}}],
)  # fmt: skip
def test_metadata_that_nobody_could_print(saved: Path, metadata: dict[str, Any]) -> None:
    edit_cfg(saved, lambda cfg: cfg.update(metadata=metadata))
    assert "key 'metadata'" in one_line(saved, CFG)


def test_other_metadata_is_kept_as_it_is(saved: Path) -> None:
    metadata = {"model_name": None, "more": [1, 2.5, None, {"deep": [True]}], "n": 10**30}
    edit_cfg(saved, lambda cfg: cfg.update(metadata=metadata))
    assert load_sae(saved).metadata == metadata


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "parent"])
def test_a_missing_tensor(saved: Path, name: str) -> None:
    edit_weights(saved, lambda weights: weights.pop(name))
    assert f"tensor '{name}' is missing" in one_line(saved, WEIGHTS)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "parent"])
def test_a_tensor_of_another_shape(saved: Path, name: str) -> None:
    edit_weights(saved, lambda weights: weights.update({name: weights[name][:-1]}))
    assert f"tensor '{name}' has shape" in one_line(saved, WEIGHTS)


def test_a_transposed_encoder(saved: Path) -> None:
    edit_weights(saved, lambda weights: weights.update(W_enc=weights["W_enc"].T))
    assert "tensor 'W_enc' has shape [21, 6]" in one_line(saved, WEIGHTS)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(saved: Path, name: str, value: float) -> None:
    edit_weights(saved, lambda weights: weights[name].view(-1)[-1:].fill_(value))
    assert f"tensor '{name}' holds NaN or infinite" in one_line(saved, WEIGHTS)


def test_a_tensor_of_another_kind(saved: Path) -> None:
    edit_weights(saved, lambda weights: weights.update(parent=weights["parent"].float()))
    assert "tensor 'parent' has dtype torch.float32" in one_line(saved, WEIGHTS)


@pytest.mark.parametrize(("feature", "parent"), [(5, 12), (5, 6), (0, 4), (20, 21), (20, -2), (20, 20)])
def test_a_parent_that_is_none(saved: Path, feature: int, parent: int) -> None:
    """Pointing forward, into the same layer, out of range, at itself."""
    edit_weights(saved, lambda weights: weights["parent"][feature : feature + 1].fill_(parent))
    edit_cfg(saved, lambda cfg: cfg["parent"].__setitem__(feature, parent))
    assert f"parent[{feature}] = {parent}" in one_line(saved, WEIGHTS)


@pytest.mark.parametrize("parent", [[-1] * D_SAE, [-1], None, "x", {}])
def test_parents_that_differ_between_the_files(saved: Path, parent: Any) -> None:
    edit_cfg(saved, lambda cfg: cfg.update(parent=parent))
    assert "'parent' differs between cfg.json and sae_weights.safetensors" in one_line(saved, CFG)


def test_parents_in_the_weights_alone_are_enough(saved: Path) -> None:
    edit_cfg(saved, lambda cfg: cfg.pop("parent"))
    assert torch.equal(load_sae(saved).parent, make_sae().parent)


# A crash while saving


def fail_at(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def crash(tensors: object, path: Path, metadata: object = None) -> None:
        path.write_bytes(b"half of i")
        raise error

    monkeypatch.setattr(files, "save_file", crash)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr
)
def test_a_crash_while_saving_leaves_the_old_folder_and_nothing_else(
    saved: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    fail_at(monkeypatch, error)
    with pytest.raises(type(error)):
        save_sae(make_sae(seed=4), saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["sae"]


def test_a_crash_while_saving_anew_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        save_sae(make_sae(), tmp_path / "sae")
    assert list(tmp_path.iterdir()) == []


def test_a_crash_between_the_two_renames_brings_the_old_folder_back(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def crash(self: Path, target: Path) -> Path:
        if Path(target) == saved and (self / CFG).exists() and load_sae(self).metadata != METADATA:
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    new = make_sae(seed=4)
    new.metadata = {"new": True}
    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(OSError, match="Input/output"):
        save_sae(new, saved)
    assert load_sae(saved).metadata == METADATA
    assert [p.name for p in saved.parent.iterdir()] == ["sae"]


def test_saving_over_an_old_sae_replaces_it(saved: Path) -> None:
    (saved / "stray").write_text("of an older version")
    save_sae(make_sae(seed=4), saved)
    assert torch.equal(load_sae(saved).W_enc, make_sae(seed=4).W_enc)
    assert {p.name for p in saved.iterdir()} == {CFG, WEIGHTS}
    assert [p.name for p in saved.parent.iterdir()] == ["sae"]
