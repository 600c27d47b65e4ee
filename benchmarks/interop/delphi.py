"""delphi: its own loader reads the cache of a run, and its own cache makes the same files from the same codes."""

from __future__ import annotations

from pathlib import Path

import torch
from benchmarks.peers.environments import Recipe
from safetensors.torch import save_file

from saeforest.interop.delphi import LATENTS, export_delphi
from saeforest.run_folder import RunFolder
from saeforest.saes import load_sae, save_sae
from saeforest.session import open_reader, read_tokens

from .a_run import make_run
from .check import Row, Run, tool

_TOKENS, _SPLITS = 12_800, 5


def check(folder: Path, run: Run) -> list[Row]:
    trained = make_run(folder)
    rows = []
    for name, silent in (
        ("a tree's latents cache", False),
        ("the same with a file of silent features", True),
    ):
        if silent:
            _silence(RunFolder(trained))
        out, expected = folder / f"cache-{silent}", folder / f"expected-{silent}.safetensors"
        done = export_delphi(trained, out, tokens=_TOKENS, splits=_SPLITS)
        assert (done.about["empty_splits"] > 0) == silent
        config, sae = RunFolder(trained).load()
        reader = open_reader(config)
        tokens = read_tokens(config, reader, "train", _TOKENS)
        f = torch.zeros(tokens.n_tokens, sae.d_sae)
        for batch, _ in reader.batches(tokens):
            f[batch.rows] = sae.encode(batch.x).dense(sae.d_sae).detach()
        shape = (*tokens.ids.shape, sae.d_sae)
        save_file({"f": f.view(shape), "tokens": tokens.ids.long()}, expected)
        found = run("run_delphi", out / LATENTS, out / "tokenizer", expected, folder / f"own-{silent}")
        ok = found["difference"] == 0 and found["tokens_equal"] and found["records"] > 50
        ok &= found["files_differ"] == 0 and found["files"] >= (_SPLITS - 1)
        said = (
            f"{found['latents']} latents and {found['activations']:,} activations in float16, {found['records']} "
            f"records made; {found['files']} of {_SPLITS} files are those that its own cache writes from these codes"
            + (", which fails at a silent one" if silent else "")
        )
        rows.append(Row(name, found["difference"], None, ok=ok, said=said))
    return rows


def _silence(run: RunFolder) -> None:
    """Take the features of one file's place off the SAE: they never fire."""
    name = run.names()[0]
    sae = load_sae(run.sae(name))
    with torch.no_grad():
        sae.encoder[89:] = 0
    save_sae(sae, run.sae(name))


DELPHI = tool(
    "eai-delphi",
    # All that its loader imports: vllm and bitsandbytes, which its explainers run on, need a GPU.
    Recipe(
        "0.1.3",
        (
            *(
                "transformers",
                "orjson",
                "safetensors",
                "simple_parsing",
                "jaxtyping",
                "asyncer",
                "anyio>=4.8",
                "tqdm",
            ),
            *(
                "blobfile",
                "numpy",
                "faiss-cpu",
                "sentence_transformers",
                "beartype",
                "datasets",
                "eai-sparsify==1.3.3",
            ),
        ),
    ),
    check,
)
