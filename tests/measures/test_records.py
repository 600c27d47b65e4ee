"""Records: what they say, their files, and the names and the table of measures."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from measure_cases import (
    CONTEXT,
    SITE,
    SOURCE,
    VOCAB,
    ce,
    losses,
    measured,
)
from saeforest.activations import ActivationReader
from saeforest.config import TextConfig, TrainConfig
from saeforest.errors import InputError
from saeforest.evaluation import (
    SETS,
    MeasureOptions,
    evaluate,
    measure_names,
    measure_saes,
    table,
)
from saeforest.measures import Record
from saeforest.run_folder import RunFolder
from saeforest.saes import TreeSAE
from saeforest.text import Tokens

# -- records


def test_records_say_what_was_measured_and_come_back_from_their_files(
    sae: TreeSAE, reader: ActivationReader, tokens: Tokens, tmp_path: Path
) -> None:
    records = evaluate(sae, reader, tokens, SETS["fast"], SOURCE, ce(9 * CONTEXT))
    assert list(records) == list(SETS["fast"])
    for name, record in records.items():
        path = tmp_path / "eval" / f"{name}.json"
        record.write(path)
        assert Record.read(path) == record
        data = json.loads(path.read_text())
        assert data["measure"] == name
        expected = {
            "model": "tiny", "site": SITE, "lm_dtype": "float32", "data": "test text", "split": "held_out",
            "normalize_activations": "layer_norm", "activation_threshold": 1e-3, "reading": "recommended",
            "positions": {"exclude_first": True, "exclude_special": True, "max_norm": 0.0}, "seed": 0, "sae": "the sae",
            "batch": "5 windows", "context": CONTEXT,
        }  # fmt: skip
        assert expected.items() <= data["settings"].items()
        assert {"version", "interval_method"} <= data["settings"].keys()


def test_measure_run_writes_a_file_for_each_measure_of_held_out_text(
    sae: TreeSAE, reader: ActivationReader, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    documents = [" ".join(f"w{i}" for i in generator.integers(3, VOCAB, size=20)) for _ in range(60)]
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    config = TrainConfig(data=str(text), site=SITE, text=TextConfig(context=CONTEXT, held_out=0.5), seed=5)
    folder = tmp_path / "run"
    run = RunFolder(folder)
    run.save_config(config)
    names = ["dead", "cross_entropy"]
    options = MeasureOptions(tokens=240, ce_tokens=24)
    records = measure_saes({"tree": (config, sae)}, reader, names, options, run)["tree"]
    assert [record.measure for record in records] == names
    assert sorted(path.name for path in (folder / "eval").iterdir()) == ["cross_entropy.json", "dead.json"]
    for record in records:
        assert Record.read(folder / "eval" / f"{record.measure}.json") == record
        assert record.settings["split"] == "held_out"
        assert record.settings["data"] == str(text)
        assert record.settings["seed"] == 5
        assert record.settings["sae"] == str(folder / "sae")
        assert record.settings["tokens_read"] == 240


def test_damaged_record_is_the_users_error(tmp_path: Path) -> None:
    for text in ("[]", "{}", '{"interval": {"a": 3}}', "no json"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=r"a\.json"):
            Record.read(tmp_path / "a.json")


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_record_refuses_what_is_no_number(value: float | None) -> None:
    with pytest.raises(ValueError, match="m: a"):
        Record("m", {"a": value}, {"a": None}, "nats", 1, {})


def test_measure_names() -> None:
    assert measure_names("fast") == list(SETS["fast"])
    assert measure_names("dead, sparsity,dead") == ["dead", "sparsity"]
    assert measure_names("dead,fast")[0] == "dead"
    for text in ("fats", "dead,", ""):
        with pytest.raises(
            InputError,
            match="no such measure; expected fast, paper, saebench, truth, or any of reconstruction, ",
        ) as e:
            measure_names(text)
        assert "\n" not in str(e.value)


def test_table_fits_a_terminal(sae: TreeSAE, reader: ActivationReader, tokens: Tokens) -> None:
    records = list(evaluate(sae, reader, tokens, SETS["fast"], SOURCE, ce(9 * CONTEXT)).values())
    records.append(measured("cross_entropy", sae, [losses(3.0, 3.2, 3.0)]))
    console = Console(file=io.StringIO(), width=100)
    console.print(table(records))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= 100 for line in lines)
    for name in [*records[0].value, "ce_loss_score", "l0_layer_2", "dead_share_layer_1", "edges_unmeasured"]:
        assert any(line.split()[:1] == [name] for line in lines)
    assert any(line.split()[:2] == ["ce_loss_score", "–"] for line in lines)
    print("\n".join(lines))
