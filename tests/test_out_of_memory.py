"""Memory that there is not ends in a line that says which setting to lower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from saeforest import cli, out_of_memory
from saeforest.errors import InputError
from saeforest.saes import TopKConfig, build

# More than a process can address, whatever the machine.
BEYOND = 1 << 50


def test_pytorch_and_numpy_say_it_in_many_ways() -> None:
    causes: list[Callable[[], object]] = [
        lambda: torch.empty(BEYOND, dtype=torch.uint8),
        lambda: np.empty(BEYOND, dtype=np.uint8),
        lambda: torch.empty(1 << 40, 1 << 40),
        lambda: bytearray(1 << 62),
    ]
    for cause in causes:
        with pytest.raises((RuntimeError, MemoryError)) as error:
            cause()
        line = out_of_memory.explained(error.value)
        assert line is not None
        assert line.startswith("not enough memory for this")
        assert "\n" not in line
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")
    assert "(2.5 GiB more)" in (out_of_memory.explained(cuda) or "")


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("x"), InputError("out of memory"), KeyError("x")]
)
def test_other_errors_are_none_of_it(error: Exception) -> None:
    assert out_of_memory.explained(error) is None


def raising(module: str) -> Callable[[], None]:
    """A function of that module which asks for too much."""
    space: dict[str, Any] = {"__name__": module, "torch": torch}
    exec(f"def work(): torch.empty({BEYOND}, dtype=torch.uint8)", space)
    return space["work"]


def raised_in(module: str) -> BaseException:
    with pytest.raises(RuntimeError) as error:
        raising(module)()
    return error.value


@pytest.mark.parametrize(
    ("module", "lower"),
    [
        ("saeforest.lm.model", "lm.batch_size or text.context"),
        ("saeforest.activations.reader", "lm.batch_size or text.context"),
        ("saeforest.activations.sources", "activations.store"),
        ("saeforest.saes.tree", "sae.layer_sizes or optim.batch_size"),
        ("saeforest.optim.adam", "sae.layer_sizes or optim.batch_size"),
        ("saeforest.explore.measuring.build", "lm.batch_size, or index a smaller SAE"),
        ("saeforest.measures.mcs", "the tokens measured"),
        ("saeforest.worlds.world", "size, batch_size or held_out"),
        ("saeforest.lmx", "sae.layer_sizes, optim.batch_size, lm.batch_size or tokens"),
    ],
)
def test_the_setting_is_that_of_the_part_that_asked(module: str, lower: str) -> None:
    assert lower in (out_of_memory.explained(raised_in(module)) or "")


def test_the_command_line_ends_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: object) -> None:
        build(TopKConfig(layer_sizes=(2**31 - 1,), k_per_layer=(1,)), d_in=1 << 20)

    monkeypatch.setattr(type(cli.COMMANDS["show"]), "load", lambda _: command)
    assert cli.run(["show"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "saeforest: error: not enough memory for the SAE (8,192.0 TiB more); lower sae.layer_sizes"
    )
    assert said.count("\n") == 1


def test_a_library_that_cannot_be_loaded_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: object) -> None:
        raise OSError("Could not find/load shared object file 'libllvmlite.so'")

    monkeypatch.setattr(type(cli.COMMANDS["show"]), "load", lambda _: command)
    assert cli.run(["show"]) == 2
    said = capsys.readouterr().err
    assert said == "saeforest: error: Could not find/load shared object file 'libllvmlite.so'\n"


def test_a_trained_sae_has_no_sizes_to_lower() -> None:
    space: dict[str, Any] = {
        "__name__": "saeforest.evaluation.evaluate",
        "encode": raising("saeforest.saes.tree"),
    }
    exec("def work(): encode()", space)
    with pytest.raises(RuntimeError) as error:
        space["work"]()
    line = out_of_memory.explained(error.value) or ""
    assert "lower lm.batch_size" in line
    assert "layer_sizes" not in line
