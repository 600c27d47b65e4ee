"""The measures of a run, on the text that its training left out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..activations import ActivationReader
from ..config import TrainConfig
from ..saes import SAE
from ..saes.files import SAE_FOLDER
from ..session import read_tokens, text_source, within
from .evaluate import Source, evaluate
from .record import Record

EVAL_FOLDER = "eval"


def measure_run(
    sae: SAE,
    config: TrainConfig,
    reader: ActivationReader,
    names: Iterable[str],
    *,
    tokens: int,
    ce_tokens: int,
    folder: Path,
    name: str = "",
) -> list[Record]:
    """Measures the SAE of a run on up to `tokens` held-out tokens and writes `folder/eval/<measure>.json` for each.

    `name`: which SAE it is of a run that trained several; its records go to `folder/eval/<name>/`.

    Raises UserError where the text or the activations are at fault (see `evaluate`).
    """
    text = read_tokens(config, reader, "held_out", tokens)
    source = Source(text_source(config), "held_out", config.seed, str(within(folder / SAE_FOLDER, name)))
    records = list(evaluate(sae, reader, text, names, source, ce_tokens=ce_tokens).values())
    for record in records:
        record.write(within(folder / EVAL_FOLDER, name) / f"{record.measure}.json")
    return records
