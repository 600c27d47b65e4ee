"""The measures of a run, on the text that its training left out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..activations import ActivationReader
from ..config import TrainConfig
from ..saes import SAE
from ..saes.files import SAE_FOLDER
from ..session import read_tokens, text_source
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
) -> list[Record]:
    """Measures the SAE of a run on up to `tokens` held-out tokens and writes `folder/eval/<measure>.json` for each.

    Raises UserError where the text or the activations are at fault (see `evaluate`).
    """
    text = read_tokens(config, reader, "held_out", tokens)
    source = Source(text_source(config), "held_out", config.seed, str(folder / SAE_FOLDER))
    records = list(evaluate(sae, reader, text, names, source, ce_tokens=ce_tokens).values())
    for record in records:
        record.write(folder / EVAL_FOLDER / f"{record.measure}.json")
    return records
