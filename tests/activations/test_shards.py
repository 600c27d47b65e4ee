"""Types of the numbers in a store: floats of other sizes, and 8 bits with a scale for each row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from harvest_cases import ABOUT, SHARD_ROWS, on_read
from llama_cases import MakeConfig
from saeforest import InputError
from saeforest.activations import ActivationBatch, ActivationReader, harvest_folder, open_store, writer
from saeforest.activations.folder import LocalFolder
from saeforest.activations.shards import batch_of, from_8bit, tensors_of, to_8bit
from saeforest.files import read_json
from saeforest.schema import Element
from saeforest.session import open_reader, read_tokens
from saeforest.text import Tokens


def oracle(row: list[float]) -> list[float]:
    """What 8 bits leave of a row, number by number, in float64."""
    s = max(abs(x) for x in row)
    q = [int(np.sign(x) * np.rint(127 * np.sqrt(abs(x) / s))) if s else 0 for x in row]
    assert all(-127 <= byte <= 127 for byte in q)
    return [s * byte * abs(byte) / 127**2 for byte in q]


def test_8_bits_as_the_formula_says() -> None:
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 40)[:, None]
    x[:, 3] *= 50
    x[7] = 0
    q, scale = to_8bit(x)
    assert q.dtype == torch.int8
    assert torch.equal(scale, x.abs().amax(1))
    expected = np.array([oracle(row) for row in x.double().tolist()])
    found = from_8bit(q, scale).double().numpy()
    # The rounding of a root in float32 may fall on the other side once in a great while.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-30)
    assert np.abs(found - x.numpy()).max(1)[7] == 0


def test_small_coordinates_survive_beside_large_ones() -> None:
    """With equal steps, what is a hundredth of the largest would be off by up to 40 %."""
    x = torch.cat([torch.tensor([[100.0]]), torch.linspace(0.5, 2, 50)[None]], 1)
    error = (from_8bit(*to_8bit(x)) - x).abs() / x
    assert float(error.max()) < 0.12
    assert float(error[0, 0]) == 0


@pytest.fixture(scope="module")
def tokens(tiny_config: MakeConfig) -> Tokens:
    return read_tokens(tiny_config(), open_reader(tiny_config()), "train", 1280)


@pytest.fixture
def reader(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> ActivationReader:
    monkeypatch.setattr(writer, "SHARD_ROWS", SHARD_ROWS)
    return open_reader(tiny_config())


@pytest.mark.parametrize("element", ["bfloat16", "int8"])
def test_a_store_of_each_type(
    element: Element, reader: ActivationReader, tokens: Tokens, tmp_path: Path
) -> None:
    whole = reader.read(tokens, torch.arange(len(tokens.ids)))

    def crash(i: int) -> None:
        if i == 4:  # its beginning is kept as it is, and not rounded twice
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_KEEP_EVERY_S", 0.0)
        on_read(patch, crash)
        with pytest.raises(RuntimeError, match="killed"):
            harvest_folder(reader, tokens, tmp_path / "store", ABOUT, element=element)
    assert (tmp_path / "store" / "open-00001.safetensors").exists()
    harvest_folder(reader, tokens, tmp_path / "store", ABOUT, element=element)
    manifest = read_json(tmp_path / "store" / "activations.json")
    assert (manifest["element"], manifest["format_version"]) == (element, 2 if element == "int8" else 1)
    store = open_store(tmp_path / "store")
    parts = [store.shard(i) for i in range(len(store.shards))]
    x = torch.cat([part.x for part in parts])
    assert torch.equal(torch.cat([part.rows for part in parts]), whole.rows)
    if element == "int8":
        assert torch.equal(x, from_8bit(*to_8bit(whole.x)))
        assert 0 < float((x - whole.x).norm() / whole.x.norm()) < 0.02
    else:
        assert torch.equal(x, whole.x.to(getattr(torch, element)))
    assert store.block(0, 0).x.dtype == (torch.float32 if element == "int8" else x.dtype)


def test_several_sites_in_8_bits() -> None:
    batch = ActivationBatch(torch.randn(5, 4), torch.arange(5), {"a x b": torch.randn(5, 3)})
    tensors = tensors_of(batch, "int8", "here")
    assert set(tensors) == {"x", "rows", "scale", "x at a x b", "scale at a x b"}
    back = batch_of(tensors)
    assert torch.equal(back.others["a x b"], from_8bit(*to_8bit(batch.others["a x b"])))


def test_what_float16_cannot_hold_is_told() -> None:
    batch = ActivationBatch(torch.tensor([[1.0, 70_000.0]]), torch.arange(1))
    with pytest.raises(InputError, match="here: an activation is larger than float16 can hold"):
        tensors_of(batch, "float16", "here")


def _no_scale(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["scale"]


def _endless_scale(tensors: dict[str, torch.Tensor]) -> None:
    tensors["scale"][0] = float("inf")


def _float_numbers(tensors: dict[str, torch.Tensor]) -> None:
    tensors["x"] = tensors["x"].float()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_no_scale, "expected scale of shape"),
        (_endless_scale, "NaN or infinite"),
        (_float_numbers, "x has dtype torch.float32"),
    ],
)
def test_a_damaged_8_bit_shard_is_told(
    damage: Callable[[dict[str, torch.Tensor]], None],
    said: str,
    reader: ActivationReader,
    tokens: Tokens,
    tmp_path: Path,
) -> None:
    harvest_folder(reader, tokens, tmp_path / "store", ABOUT, element="int8")
    store, place = open_store(tmp_path / "store"), LocalFolder(tmp_path / "store")
    tensors = place.read_tensors("shard-00001.safetensors")
    damage(tensors)
    store.shards[1]["checksum"] = place.write_tensors("shard-00001.safetensors", tensors)
    with pytest.raises(InputError, match=said):
        store.shard(1)
