"""Latents caches for delphi, read by a reader written from the format alone, and compared with codes of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor
from transformers import AutoTokenizer

from lm_cases import WIDTH, llama, tiny
from saeforest.activations import ActivationBatch, ActivationReader
from saeforest.errors import InputError
from saeforest.interop.delphi import export_delphi, splits_of, write_delphi
from saeforest.run_folder import RunFolder
from saeforest.saes import SAE, TopKConfig, TopKSAE, TreeConfig, TreeSAE
from saeforest.session import open_reader, read_tokens
from saeforest.text import Tokens

Found = dict[tuple[int, int, int], float]


def read_cache(folder: Path) -> tuple[Found, dict[str, np.ndarray], dict[str, np.dtype]]:
    """(window, position, feature) -> activation, as the format is described; tokens and location types by file."""
    found: Found = {}
    tokens, types = {}, {}
    for path in folder.glob("*.safetensors"):
        start, last = map(int, path.stem.split("_"))
        data = load_file(path)
        assert data["activations"].dtype == np.float16
        tokens[path.name], types[path.name] = data["tokens"], data["locations"].dtype
        order = np.lexsort(data["locations"].T[[1, 0, 2]])
        by_feature = np.argsort(data["locations"][:, 2], kind="stable")
        assert (order == by_feature).all(), "a feature's activations are in the order of the text"
        for (window, position, local), value in zip(
            data["locations"].tolist(), data["activations"], strict=True
        ):
            assert start <= start + local <= last
            assert (window, position, start + local) not in found
            found[window, position, start + local] = float(value)
    return found, tokens, types


class Given(ActivationReader):
    """Gives prepared activations, of all positions but the first of each window."""

    x: Tensor

    def batches(self, tokens: Tokens, windows: Tensor | None = None) -> Iterator[tuple[ActivationBatch, int]]:
        rows = torch.arange(tokens.n_tokens)
        rows = rows[rows % tokens.context > 0]
        for part in rows.split(50):
            yield ActivationBatch(self.x[part], part), len(part)


@pytest.fixture(scope="module")
def reader() -> Given:
    lm = tiny(llama)
    reader = Given(lm, lm.site("blocks.1.hook_resid_post"))
    reader.x = torch.randn(256, WIDTH, generator=torch.Generator().manual_seed(0))
    return reader


TOKENS = Tokens(torch.randint(3, 13, (4, 64), dtype=torch.int32), torch.tensor([0]), ("doc",))


def expected(sae: SAE, reader: Given, scale: float = 1.0) -> Found:
    with torch.no_grad():
        dense = sae.encode(reader.x).dense(sae.d_sae)
    return {
        (row // 64, row % 64, feature): float(np.float16(float(dense[row, feature]) * scale))
        for row, feature in dense.nonzero().tolist()
        if row % 64 and float(dense[row, feature]) * scale > 1e-5
    }


def test_a_cache_holds_the_codes_of_its_text(reader: Given, tmp_path: Path) -> None:
    sae = TreeSAE(TreeConfig(layer_sizes=(4, 9, 17), k_per_layer=(2, 2, 2)), WIDTH, seed=1)
    sae.metadata = {"dataset_path": "some/text"}
    done = write_delphi(sae, sae.forest, reader, TOKENS, tmp_path / "out", splits=4)
    place = tmp_path / "out" / "latents" / "layers.1"
    found, tokens, types = read_cache(place)
    assert found == expected(sae, reader)
    assert len(found) == done.about["activations"] > 900
    assert sorted(tokens) == ["0_6.safetensors", "15_21.safetensors", "22_29.safetensors", "7_14.safetensors"]
    assert set(types.values()) == {np.dtype("uint16")}
    assert all((text == TOKENS.ids.numpy()).all() for text in tokens.values())
    config = json.loads((place / "config.json").read_text())
    assert config == {
        "dataset_repo": "some/text",
        "dataset_split": "train",
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": 16,
        "cache_ctx_len": 64,
        "n_tokens": 256,
        "n_splits": 4,
        "model_name": "tiny",
    }
    counts = torch.load(tmp_path / "out" / "log" / "hookpoint_firing_counts.pt", weights_only=True)[
        "layers.1"
    ]
    fired = [sum(feature == f for *_, feature in found) for f in range(sae.d_sae)]
    assert counts.tolist() == fired
    assert json.loads((tmp_path / "out" / "hierarchy.json").read_text())["parent"] == sae.parent.tolist()
    # What lists the folder of caches finds hookpoints alone.
    assert [path.name for path in (tmp_path / "out" / "latents").iterdir()] == ["layers.1"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert tokenizer.decode(TOKENS.ids[0]) == reader.lm.tokenizer.decode(TOKENS.ids[0])


def test_files_without_an_activation(reader: Given, tmp_path: Path) -> None:
    sae = TopKSAE(TopKConfig((40,), (3,), normalize_activations="none", encoder_bias=True), WIDTH, seed=1)
    with torch.no_grad():
        sae.b_enc[10:] = -100
    done = write_delphi(sae, sae.forest, reader, TOKENS, tmp_path / "out", splits=4)
    found, tokens, _ = read_cache(tmp_path / "out" / "latents" / "layers.1")
    assert found == expected(sae, reader)
    assert done.about["empty_splits"] == 3
    empty = load_file(tmp_path / "out" / "latents" / "layers.1" / "30_39.safetensors")
    assert empty["locations"].shape == (0, 3)
    assert empty["activations"].shape == (0,)
    assert len(tokens) == 4


def test_activations_too_large_for_float16_are_scaled_and_said(
    reader: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = TopKSAE(TopKConfig((40,), (3,), normalize_activations="none"), WIDTH, seed=1)
    with torch.no_grad():
        sae.encoder[:3] *= 1e5
        sae.encoder[3:] *= 2e-5
    largest = float(sae.encode(reader.x[1:]).values.detach().max())
    assert 2 * 65_504 < largest < 8 * 65_504
    done = write_delphi(sae, sae.forest, reader, TOKENS, tmp_path / "out")
    scale = done.about["activation_scale"]
    assert scale in (0.25, 0.125)
    assert largest * scale <= 65_504 < largest * scale * 2
    found, _, _ = read_cache(tmp_path / "out" / "latents" / "layers.1")
    assert found == expected(sae, reader, scale)
    assert all(np.isfinite(value) for value in found.values())
    with torch.no_grad():
        n_before = int((sae.encode(reader.x[torch.arange(256) % 64 > 0]).values > 1e-5).sum())
    assert done.about["activations_lost"] == n_before - len(found) > 10
    assert "more than float16 holds" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "saeforest-export.json").read_text())["activation_scale"] == scale


def test_features_beyond_16_bits_take_32(reader: Given, tmp_path: Path) -> None:
    sae = TopKSAE(TopKConfig((70_000,), (2,), normalize_activations="none"), WIDTH, seed=1)
    write_delphi(sae, sae.forest, reader, TOKENS, tmp_path / "one", splits=1)
    found, _, types = read_cache(tmp_path / "one" / "latents" / "layers.1")
    assert found == expected(sae, reader)
    assert max(feature for *_, feature in found) > 65_535
    assert set(types.values()) == {np.dtype("uint32")}
    write_delphi(sae, sae.forest, reader, TOKENS, tmp_path / "two", splits=2)
    again, _, types = read_cache(tmp_path / "two" / "latents" / "layers.1")
    assert again == found
    assert set(types.values()) == {np.dtype("uint16")}


def test_where_the_files_are_divided() -> None:
    assert [split.name for split in splits_of(10, 3)] == [
        "0_2.safetensors",
        "3_5.safetensors",
        "6_9.safetensors",
    ]
    for n in (0, 11):
        with pytest.raises(InputError, match=f"splits = {n}: expected 1 to 10"):
            splits_of(10, n)


def test_a_run(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The positions are those that were trained on; the cache is whole or absent."""
    out = tmp_path / "out"
    export_delphi(finished_run, out, tokens=640, splits=2)
    config, sae = RunFolder(finished_run).load()
    reader = open_reader(config)
    tokens = read_tokens(config, reader, "train", 640)
    batch = reader.read(tokens, torch.arange(len(tokens.ids)))
    with torch.no_grad():
        dense = sae.encode(batch.x).dense(sae.d_sae)
    found, _, _ = read_cache(out / "latents" / "layers.1")
    wanted = {
        (int(batch.rows[i]) // 32, int(batch.rows[i]) % 32, f): float(np.float16(float(dense[i, f])))
        for i, f in (dense > 1e-5).nonzero().tolist()
    }
    assert found.keys() == wanted.keys()
    assert all(abs(found[key] - wanted[key]) <= 2e-3 * wanted[key] for key in found)
    with pytest.raises(InputError, match="holds an export already"):
        export_delphi(finished_run, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(InputError, match="not empty"):
        export_delphi(finished_run, tmp_path / "mine", force=True)
    with pytest.raises(InputError, match="inside the run"):
        export_delphi(finished_run, finished_run / "latents")
