"""Documents as the units of a bootstrap: windows are cut where a document ends, and few documents are not enough."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from saeforest.evaluation.windows import read_windows
from saeforest.measures import EvalBatch, Record
from saeforest.measures.measure import FEW_DOCUMENTS
from saeforest.measures.reconstruction import Reconstruction
from saeforest.run_folder import RunFolder
from saeforest.session import open_reader, read_tokens
from saeforest.sparse_code import SparseCode


def batches(n_documents: int) -> tuple[list[EvalBatch], torch.Tensor, list[int]]:
    """Windows of 10 rows that hold the end of one document and the start of the next: documents of 7 rows."""
    n = 7 * n_documents // 10 * 10
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    document = [row // 7 for row in range(n)]
    made = []
    for start in range(0, n, 20):
        rows = torch.arange(start, min(start + 20, n))
        origins = sorted({(row // 10, document[row]) for row in rows.tolist()})
        first = {
            origin: min(r for r in rows.tolist() if (r // 10, document[r]) == origin) for origin in origins
        }
        part = x[rows]
        made.append(
            EvalBatch(
                x=part,
                rows=rows,
                window=torch.tensor([first[row // 10, document[row]] for row in rows.tolist()]),
                windows=torch.tensor(list(first.values())),
                code=SparseCode(torch.zeros(len(rows), 1), torch.zeros(len(rows), 1, dtype=torch.int64)),
                x_hat=0.5 * part + 0.1,
                origin=torch.tensor(origins),
            )
        )
    return made, x, document


def measured(n_documents: int) -> tuple[Record, torch.Tensor, list[int]]:
    made, x, document = batches(n_documents)
    measure = Reconstruction()
    for batch in made:
        measure.update(batch)
    return measure.record({}), x, document


@pytest.mark.parametrize("n_documents", [FEW_DOCUMENTS, FEW_DOCUMENTS - 1])
def test_intervals_equal_drawing_whole_documents_or_windows_by_hand(n_documents: int) -> None:
    record, x, document = measured(n_documents)
    n = len(x)
    many = len(set(document)) >= FEW_DOCUMENTS
    assert many == (n_documents == FEW_DOCUMENTS)
    unit_of = document if many else [row // 10 for row in range(n)]
    assert ("over documents" if many else "over context windows") in record.settings["interval_method"]
    assert record.replicates["fve"].units.startswith("documents " if many else "context windows ")
    rows = defaultdict(list)
    for row, unit in enumerate(unit_of):
        rows[unit].append(row)
    x_hat = 0.5 * x + 0.1
    drawn = np.random.default_rng(0).integers(len(rows), size=(1000, len(rows)))

    def fve(of: list[int]) -> float:
        some, other = x[of].double(), x_hat[of].double()
        return float(1 - (some - other).square().sum() / (some - some.mean(0)).square().sum())

    assert record.value["fve"] == pytest.approx(fve(list(range(n))))
    for resample in (0, 1, 500):
        of = [row for unit in drawn[resample].tolist() for row in rows[unit]]
        assert record.replicates["fve"].drawn[resample] == pytest.approx(fve(of), rel=2e-5)


def test_a_text_is_cut_where_documents_end(finished_run: Path) -> None:
    config, sae = RunFolder(finished_run).load()
    reader = open_reader(config)
    tokens = read_tokens(config, reader, "train", 1000)
    windows = torch.arange(24)
    view = read_windows(reader, tokens, windows, 20)
    batch = view.through(sae)
    assert batch.origin is not None
    assert batch.losses is not None
    starts = tokens.document_starts.tolist()
    document = [sum(start <= row for start in starts) - 1 for row in range(24 * tokens.context)]
    origin = sorted({(row // tokens.context, document[row]) for row in range(24 * tokens.context)})
    assert batch.origin.tolist() == [list(pair) for pair in origin]
    assert len(origin) > 24  # some windows hold two documents
    kept = batch.rows.tolist()
    lengths = batch.sums(torch.ones(len(kept))).tolist()
    by_hand = [sum((row // tokens.context, document[row]) == pair for row in kept) for pair in origin]
    assert lengths == by_hand
    # Losses: of positions that are kept, and not the last of a window; the sum over parts is that over windows.
    measured = [row for row in kept if row < 20 * tokens.context]
    ends = [pair for pair in origin if pair[0] < 20]
    assert batch.losses.kl_count.tolist() == by_hand[: len(ends)]
    part_of = {r: (r // tokens.context, document[r]) for r in measured if (r + 1) % tokens.context}
    assert batch.losses.count.tolist() == [list(part_of.values()).count(pair) for pair in ends]
    ids = tokens.ids[:20].long()
    logits = reader.lm.logits(ids)
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    clean = [
        sum(float(losses[divmod(r, tokens.context)]) for r, part in part_of.items() if part == pair)
        for pair in ends
    ]
    assert batch.losses.clean.tolist() == pytest.approx(clean, rel=1e-5)
