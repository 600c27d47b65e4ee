"""Latents caches that delphi (EleutherAI) explains and scores features from.

    OUT/latents/HOOKPOINT/START_END.safetensors   features START to END, the last one included
    OUT/latents/HOOKPOINT/config.json             the text that was read, as delphi's own cache says it
    OUT/log/hookpoint_firing_counts.pt            on how many tokens each feature fires
    OUT/tokenizer/                                the tokenizer of the text
    OUT/hierarchy.json                            the forest, which delphi has no place for

A file of features has `locations [n, 3]` (window, position, feature - START), in the order of the text; `activations
[n]` in float16; and `tokens [windows, context]`, the whole text, which delphi's loader takes from the first file. Files
without a single activation are written too: its loader reads them.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ..activations import ActivationReader
from ..errors import InputError
from ..hf_types import PreTrainedTokenizerBase
from ..output import note
from ..progress import progress
from ..run_folder import RunFolder
from ..saes import SAE
from ..session import check_site, open_reader, read_tokens
from ..structure.forest import Forest
from ..text import Tokens
from .exports import Exported, check_out, export_folder, of_run, write_hierarchy

#: What delphi takes for an activation: larger than this.
LEAST = 1e-5
#: The largest number of float16.
LARGEST = 65_504.0
#: delphi cuts the text into examples of this many tokens by default; a window should be a whole number of them.
EXAMPLE = 32
LATENTS, LOG, COUNTS, TOKENIZER = "latents", "log", "hookpoint_firing_counts.pt", "tokenizer"
_SMALL = 1 << 16  # uint16 holds what is below


class Split(NamedTuple):
    """Features in one file: from `start` to before `end`."""

    start: int
    end: int

    @property
    def name(self) -> str:
        return f"{self.start}_{self.end - 1}.safetensors"


def splits_of(d_sae: int, n: int) -> list[Split]:
    """The features of `n` files, divided where delphi divides them. Raises InputError if a file would have none."""
    if not 1 <= n <= d_sae:
        raise InputError(f"splits = {n}: expected 1 to {d_sae}, the number of features")
    ends = torch.linspace(0, d_sae, n + 1).long().tolist()
    return [Split(start, end) for start, end in pairwise(ends)]


def export_delphi(
    run: RunFolder | Path,
    out: Path,
    *,
    tokens: int | None = None,
    splits: int = 5,
    sae: str | None = None,
    device: str | None = None,
    force: bool = False,
) -> Exported:
    """Write what the features of a run's SAE do on the run's training text as a latents cache of delphi.

    tokens: number of tokens to read; None for as many as in training, up to 600,000.
    sae:    which SAE of a run that trained several.
    device: device of language model and SAE; None for the one it was trained on.
    splits, force: see `write_delphi`, which says what is raised, too.
    """
    found = of_run(run, sae, device)
    splits_of(found.sae.d_sae, splits)
    check_out(out, force)
    reader = open_reader(found.config)
    check_site(found.sae, reader)
    text = read_tokens(found.config, reader, "train", tokens or found.tokens)
    return write_delphi(found.sae, found.forest, reader, text, out, splits=splits, force=force)


@torch.no_grad()
def write_delphi(
    sae: SAE,
    forest: Forest,
    reader: ActivationReader,
    tokens: Tokens,
    out: Path,
    *,
    splits: int = 5,
    force: bool = False,
) -> Exported:
    """Write what an SAE's features do on a text as a latents cache of delphi.

    The text's activations are read once, at the positions that `reader` keeps; at the others nothing fires. As in
    delphi's own cache, an activation counts above 1e-5. If one is too large for float16, all are divided by the same
    power of two, which a note and `saeforest-export.json` tell: delphi uses only their order and their ratios.

    splits: number of files.
    force: whether an earlier export at `out` is replaced.

    Raises InputError if there are more files than features, or `out` holds anything else than an earlier export.
    """
    parts = splits_of(sae.d_sae, splits)
    hookpoint = _hookpoint(reader)
    if tokens.context % EXAMPLE:
        note(
            f"a window of {tokens.context} tokens is no multiple of delphi's examples of {EXAMPLE}; give it an "
            "example_ctx_len that divides it"
        )
    about: dict[str, Any] = {
        "hookpoint": hookpoint,
        "tokens": tokens.n_tokens,
        "context": tokens.context,
        "splits": splits,
    }
    with export_folder(out, "delphi", sae, about, force=force) as folder:
        place = folder / LATENTS / hookpoint
        place.mkdir(parents=True)
        firings = _Firings(folder / "firings", parts, tokens)
        _read(sae, reader, tokens, firings)
        about |= firings.write(place)
        counts = torch.from_numpy(firings.counts)
        (folder / LOG).mkdir()
        torch.save({hookpoint: counts}, folder / LOG / COUNTS)
        config = _config(sae, tokens, reader, splits)
        (place / "config.json").write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
        tokenizer: PreTrainedTokenizerBase = reader.lm.tokenizer
        tokenizer.save_pretrained(folder / TOKENIZER)
        write_hierarchy(folder, forest)
    return Exported(out, about)


def _read(sae: SAE, reader: ActivationReader, tokens: Tokens, firings: _Firings) -> None:
    with progress("delphi", tokens.n_tokens) as advance:
        for batch, n_read in reader.batches(tokens):
            code = sae.encode(batch.x.to(sae.device))
            active = code.values > LEAST
            rows = batch.rows.to(sae.device)[:, None].expand_as(active)[active]
            firings.add(rows.cpu(), code.ids[active].cpu(), code.values[active].float().cpu())
            advance(n_read)


def _hookpoint(reader: ActivationReader) -> str:
    """delphi's name of the site: the path of the module in the base model whose output it is; otherwise our own."""
    site = reader.site
    if site.kind != "output":
        return site.name.replace("/", "_")
    prefix = f"{getattr(reader.lm.model, 'base_model_prefix', '')}."
    return site.module_path.removeprefix(prefix)


def _config(sae: SAE, tokens: Tokens, reader: ActivationReader, splits: int) -> dict[str, Any]:
    about = sae.metadata
    return {
        "dataset_repo": str(about.get("dataset_path", "")),
        "dataset_split": str(about.get("dataset_split", "train")),
        "dataset_name": str(about.get("dataset_subset", "")),
        "dataset_column": str(about.get("dataset_column", "text")),
        "batch_size": reader.batch_size,
        "cache_ctx_len": tokens.context,
        "n_tokens": tokens.n_tokens,
        "n_splits": splits,
        "model_name": reader.lm.name,
    }


class _Firings:
    """The firings of each file's features, kept on disk while the text is read: there may be billions."""

    def __init__(self, folder: Path, splits: list[Split], tokens: Tokens) -> None:
        folder.mkdir()
        self._folder, self._splits, self._tokens = folder, splits, tokens
        self._bounds = torch.tensor([split.end for split in splits])
        widest = max(split.end - split.start for split in splits)
        small = max(len(tokens.ids), tokens.context, widest) <= _SMALL
        self._dtype = np.dtype("<u2" if small else "<u4")
        self.counts: NDArray[np.int64] = np.zeros(splits[-1].end, np.int64)
        self._largest = 0.0

    def add(self, rows: Int[torch.Tensor, "m"], ids: Int[torch.Tensor, "m"], values: torch.Tensor) -> None:
        """Add firings, in the order of the text."""
        if not len(ids):
            return
        self.counts += np.bincount(ids.numpy(), minlength=len(self.counts))
        self._largest = max(self._largest, float(values.max()))
        # The order that delphi's own cache has: of the text, and on a token by feature.
        in_text = (rows * len(self.counts) + ids).argsort()
        rows, ids, values = rows[in_text], ids[in_text], values[in_text]
        file = torch.bucketize(ids, self._bounds, right=True)
        order = file.sort(stable=True).indices
        ends = torch.bincount(file, minlength=len(self._splits)).cumsum(0).tolist()
        where = torch.stack([rows // self._tokens.context, rows % self._tokens.context, ids], 1)[
            order
        ].numpy()
        what = values[order].numpy().astype("<f4")
        for i, (split, end) in enumerate(zip(self._splits, ends, strict=True)):
            start = ends[i - 1] if i else 0
            if start == end:
                continue
            locations = where[start:end] - np.array([0, 0, split.start])
            with (self._folder / f"{i}.locations").open("ab") as file_of_locations:
                file_of_locations.write(locations.astype(self._dtype).tobytes())
            with (self._folder / f"{i}.values").open("ab") as file_of_values:
                file_of_values.write(what[start:end].tobytes())

    def write(self, place: Path) -> dict[str, Any]:
        """Write the files that delphi reads, and delete those kept meanwhile. Returns what there is to say of them."""
        scale = self._scale()
        tokens = self._tokens.ids.numpy().astype("<i4")
        n_kept = n_lost = n_empty = 0
        for i, split in enumerate(self._splits):
            locations, values = self._of(i, "locations").reshape(-1, 3), self._of(i, "values") * scale
            kept = values > LEAST
            n_kept, n_lost = n_kept + int(kept.sum()), n_lost + int((~kept).sum())
            n_empty += not kept.any()
            data = {
                "locations": np.ascontiguousarray(locations[kept]),
                "activations": values[kept].astype("<f2"),
                "tokens": tokens,
            }
            save_file(data, place / split.name)
        for path in self._folder.iterdir():
            path.unlink()
        self._folder.rmdir()
        if scale != 1:
            note(
                f"the largest activation is {self._largest:,.0f}, more than float16 holds ({LARGEST:,.0f}): all are "
                f"multiplied by {scale:g}, by which {n_lost:,} become too small to count"
            )
        return {
            "activations": n_kept,
            "activation_scale": scale,
            "activations_lost": n_lost,
            "empty_splits": n_empty,
        }

    def _of(self, i: int, kind: str) -> NDArray[Any]:
        path, dtype = self._folder / f"{i}.{kind}", self._dtype if kind == "locations" else np.dtype("<f4")
        return np.fromfile(path, dtype) if path.exists() else np.zeros(0, dtype)

    def _scale(self) -> float:
        """1, or the power of two that brings the largest activation within float16."""
        if self._largest <= LARGEST:
            return 1.0
        return 2.0 ** -math.ceil(math.log2(self._largest / LARGEST))
