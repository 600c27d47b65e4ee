"""A second backend is used only if it gives what transformers gives, and the manifest says how close it came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from llama_cases import MakeConfig
from saeforest import InputError
from saeforest.activations import backends
from saeforest.activations.backends import compared, open_backend
from saeforest.files import read_json
from saeforest.lm import LanguageModel, Site, load_lm
from saeforest.training.harvest import run_harvest


@dataclass
class Fake:
    """Another engine: the same language model, and what it does to activations."""

    lm: LanguageModel
    change: Callable[[Tensor], Tensor]

    def activations(self, ids: Tensor, sites: Sequence[Site]) -> dict[str, Tensor]:
        return {name: self.change(x) for name, x in self.lm.activations(ids, sites).items()}


@dataclass
class Shifted:
    """Counts layers from another number."""

    lm: LanguageModel

    def activations(self, ids: Tensor, sites: Sequence[Site]) -> dict[str, Tensor]:
        return {site.name: self.lm.activations(ids, "blocks.0.hook_resid_post") for site in sites}


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def noisy(x: Tensor) -> Tensor:
    return x + 0.2 * x.std() * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def moved(x: Tensor) -> Tensor:
    return x.roll(1, 1)


FAKES: dict[str, Callable[[LanguageModel], object]] = {
    "transformers": lambda lm: None,
    "rounded": lambda lm: Fake(lm, rounded),
    "noisy": lambda lm: Fake(lm, noisy),
    "moved": lambda lm: Fake(lm, moved),
    "not a number": lambda lm: Fake(lm, lambda x: x * float("nan")),
    "narrow": lambda lm: Fake(lm, lambda x: x[..., :-1]),
    "shifted": Shifted,
}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saeforest.training.harvest.open_backend", lambda name, lm, sites: FAKES[name](lm))


@pytest.mark.usefixtures("fakes")
def test_a_backend_that_rounds_is_used_and_recorded(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config(tokens=640)
    run_harvest(config, tmp_path / "one")
    done = run_harvest(config, tmp_path / "other", backend="rounded")
    assert done is not None
    about = read_json(tmp_path / "other" / "activations.json")["backend"]
    assert about["name"] == "rounded"
    parity = about["parity"][config.site]
    assert 0 < parity["unexplained"] < 1e-4
    assert 0.99 < parity["cosine"] < 1
    assert "backend" not in read_json(tmp_path / "one" / "activations.json")
    one, other = (run_harvest(config, tmp_path / name, backend=b) for name, b in
                  (("one", "transformers"), ("other", "rounded")))  # fmt: skip
    assert one is not None
    assert other is not None
    assert torch.equal(other.store.shard(0).x, rounded(one.store.shard(0).x))
    with pytest.raises(InputError, match="backend"):
        run_harvest(config, tmp_path / "one", backend="rounded")


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("noisy", "leave 0.0.* of the variance of those of transformers unexplained"),
        ("moved", "of the variance of those of transformers unexplained"),
        ("shifted", "of the variance of those of transformers unexplained"),
        ("not a number", "NaN or infinite"),
        ("narrow", "of width 15 at blocks.1.hook_resid_post, not 16"),
    ],
)
def test_a_backend_that_is_wrong_is_refused(
    name: str, said: str, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        run_harvest(tiny_config(tokens=640), tmp_path / "store", backend=name)
    assert not (tmp_path / "store").exists()


def test_the_comparison_by_hand() -> None:
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(30, 4)) + 100  # a large mean, which must not hide a difference
    found = expected + rng.normal(size=(30, 4)) * 0.3
    result = compared(torch.tensor(found).float(), torch.tensor(expected).float())
    centered, moved = expected - expected.mean(0), found - expected.mean(0)
    cosines = [a @ b / np.sqrt(a @ a * (b @ b)) for a, b in zip(moved, centered, strict=True)]
    assert result.unexplained == pytest.approx(
        ((found - expected) ** 2).sum() / (centered**2).sum(), rel=1e-3
    )
    assert result.cosine == pytest.approx(min(cosines), abs=1e-4)


def test_the_backends_by_name(tiny_model: Path) -> None:
    assert open_backend("transformers", load_lm(str(tiny_model)), []) is None
    assert list(backends.BACKENDS) == ["vllm"]
