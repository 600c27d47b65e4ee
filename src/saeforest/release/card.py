"""The model card of a release (README.md on the Hub), written from the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

from .. import __version__
from ..evaluation.null_values import OVER_SHUFFLED, OVER_UNTRAINED, SHUFFLED, UNTRAINED
from ..evaluation.registry import MEASURES
from ..measures.record import Record
from ..report.numbers import DASH, number
from ..saes import SYSTEMS
from .contents import LIBRARY, Member, Release
from .preview import PICTURE, PREVIEW, Preview

_TAGS = ("sparse-autoencoder", "mechanistic-interpretability", "hierarchical", LIBRARY)
_NORMALIZATIONS = {
    "layer_norm": "each activation standardized to mean 0 and standard deviation 1 (`layer_norm`)",
    "constant_norm_rescale": "each activation scaled to norm √d (`constant_norm_rescale`)",
    "none": "none",
}
#: Value of a measure and its title: the columns of the table of measures.
_QUALITY = (
    ("sparsity", "l0", "L0"),
    ("reconstruction", "fve", "FVE"),
    ("cross_entropy", "ce_loss_score", "CE loss score"),
    ("cross_entropy", "clean", "CE of the model"),
    ("cross_entropy", "spliced", "CE with the SAE"),
    ("cross_entropy", "ablated", "CE, activation ablated"),
    ("dead", "dead_share", "dead features"),
)


def card(release: Release, repo: str, license_id: str | None, preview: Preview | None) -> str:
    """The text of the model card.

    repo:       name of the repository, `org/name`, for the lines that load from it.
    license_id: the license of the SAE by the Hub's identifier, such as mit; None if none was given.
    """
    parts = [
        f"---\n{yaml.safe_dump(_front(release, license_id), sort_keys=False, allow_unicode=True)}---",
        f"# {repo.partition('/')[2]}",
        _introduction(release),
        *picture(preview),
        "## Load it",
        *_load(release, repo),
        "## What it was trained on",
        _table(("", ""), _facts(release)),
        *_systems(release),
        "## Measured on held-out text",
        *_quality(release),
        "## The hierarchy beside its nulls",
        *_hierarchy(release),
        "## What is here",
        *_what_is_here(release, repo, preview),
        "## License",
        _license(release, license_id),
    ]
    return "\n\n".join(parts) + "\n"


def _front(release: Release, license_id: str | None) -> dict[str, Any]:
    """The metadata by which the Hub finds a model."""
    return {
        "library_name": LIBRARY,
        **({"license": license_id} if license_id else {}),
        **({"base_model": release.base_model} if release.base_model else {}),
        **({"datasets": [release.data_set]} if release.data_set else {}),
        "tags": list(_TAGS),
        "pipeline_tag": "feature-extraction",
    }


def _introduction(release: Release) -> str:
    what = _and(_in_words(member) for member in release.members.values())
    where = f" on activations of {_model_link(release)} at `{release.config.site}`" if release.model else ""
    many = "SAEs" if len(release.members) > 1 else "A sparse autoencoder"
    return f"{many} trained with {LIBRARY} {__version__}{where}: {what}."


def _in_words(member: Member) -> str:
    title, edges = SYSTEMS[member.config.sae.architecture].title, member.forest.edges.shape[1]
    tree = f" ({edges:,} with a parent)" if edges else ""
    return f"{title} of {member.sae.d_sae:,} features{tree}"


def _model_link(release: Release) -> str:
    name = release.base_model
    return release.model_title if name is None else f"[{name}](https://huggingface.co/{name})"


def picture(preview: Preview | None) -> Iterator[str]:
    """The paragraphs of the card with a picture of a family, if there is one, and what it says and does not say."""
    if preview is None:
        return
    yield f"![Feature {preview.feature} with the features below it]({PREVIEW}/{PICTURE})"
    caption = (
        f"Feature {preview.feature} and its children, the family that reads best by the explorer's rules: one of "
        f"many, and no measure of the rest. {preview.nulls}"
    )
    yield f"*{caption.strip()}*"


# -- loading


def _load(release: Release, repo: str) -> Iterator[str]:
    names = list(release.load_names(repo).values())
    choose = "\n".join(f'# or "{name}"' for name in names[1:])
    yield "`pip install saeforest`, and in Python:"
    lines = [
        "import torch",
        "import saeforest",
        "",
        f'sae = saeforest.load("{names[0]}")',
        *filter(None, [choose]),
    ]
    if release.model is None:
        lines += ["x = torch.randn(10, sae.d_in)  # your activations, [n, d_in]"]
    else:
        model = release.model.name if release.base_model else f"path/to/{release.model_title}"
        lines += [
            "",
            f'lm = saeforest.load_lm("{model}")',
            'ids = lm.tokenizer("The days of the week are", return_tensors="pt").input_ids',
            f'x = lm.activations(ids, lm.site("{release.config.site}"))[0].float()  # [tokens, d_in]',
        ]
    lines += [
        "",
        "with torch.no_grad():",
        "    code = sae.encode(x)  # the active features of each token: code.ids, code.values",
        "    x_hat = sae(x)  # the reconstruction",
        "sae.forest.children(0)  # the features below feature 0",
    ]
    yield "```python\n" + "\n".join(lines) + "\n```"
    yield (
        f'`saeforest.load("{names[0]}", revision="COMMIT")` stays with one commit. The repository is the folder of a '
        "run: download all of it, and every command takes it."
    )
    folder = repo.partition("/")[2]
    yield f"```bash\nhf download {repo} --local-dir {folder}\nsaeforest explore {folder}\n```"


# -- facts


def _facts(release: Release) -> Iterator[tuple[str, str]]:
    config, metadata = release.config, release.first.sae.metadata
    if release.model is None:
        yield "activations", "given as a tensor; the language model is not recorded"
    else:
        revision = f", revision `{release.model.revision}`" if release.model.revision else ""
        fingerprint = f", fingerprint `{release.model.fingerprint}`" if release.model.fingerprint else ""
        yield "language model", f"{_model_link(release)}{revision}{fingerprint}"
        sites = [("site", config.site), *([("target", config.target)] if config.target else [])]
        for title, site in sites:
            module = release.module(site)
            in_transformers = f"; `{module}` in transformers" if module and module != site else ""
            yield (
                title,
                f"`{site}` (hook name of TransformerLens){in_transformers}"
                if module != site
                else f"`{site}`",
            )
        yield "text", _text(release)
        yield "context", f"{metadata.get('context_size', config.text.context)} tokens, {_bos(metadata)}"
        yield "positions left out", _left_out(release)
    yield "training activations", f"{metadata.get('tokens', config.tokens):,}"
    yield "normalization", _and(sorted({_normalization(member) for member in release.members.values()}))
    yield "precision of the weights", "float32"
    yield "seed", _and(sorted({str(member.config.seed) for member in release.members.values()}))


def _text(release: Release) -> str:
    if release.data_set:
        metadata = release.first.sae.metadata
        more = [str(metadata[key]) for key in ("dataset_subset", "dataset_revision") if metadata.get(key)]
        link = f"[{release.data_set}](https://huggingface.co/datasets/{release.data_set})"
        return f"{link} ({', '.join(more)})" if more else link
    return (
        "the text packaged with saeforest"
        if release.first.sae.metadata.get("dataset") == "packaged"
        else "local text"
    )


def _bos(metadata: dict[str, Any]) -> str:
    return "BOS before each window" if metadata.get("prepend_bos") else "no BOS"


def _left_out(release: Release) -> str:
    chosen = release.config.activations
    parts = ["the first of a window"] * chosen.exclude_first + ["special tokens"] * chosen.exclude_special
    parts += [f"activations with a norm above {chosen.max_norm:.4g}"] if chosen.max_norm else []
    return _and(parts) or "none"


def _normalization(member: Member) -> str:
    kind = member.sae.config.normalize_activations
    return (
        _NORMALIZATIONS.get(str(kind), f"activations times {kind}") + ", which the SAE does and undoes itself"
    )


def _systems(release: Release) -> Iterator[str]:
    rows = (
        (
            f"`{member.name}`",
            SYSTEMS[member.config.sae.architecture].title,
            " + ".join(f"{size:,}" for size in member.config.sae.layer_sizes),
            " + ".join(str(k) for k in member.config.sae.k_per_layer),
            member.origin if member.forest.edges.shape[1] else "none",
        )
        for member in release.members.values()
    )
    yield _table(("SAE", "system", "features by layer", "k by layer", "forest"), rows)


# -- numbers


def _quality(release: Release) -> Iterator[str]:
    shown = [
        column
        for column in _QUALITY
        if any(_value(member.records, *column[:2]) is not None for member in release.members.values())
    ]
    if not shown:
        yield "Nothing was measured before this card was written."
        return
    rows = (
        (f"`{member.name}`", *(_cell(member.records.get(measure), value) for measure, value, _ in shown))
        for member in release.members.values()
    )
    yield _table(("SAE", *(title for _, _, title in shown)), rows)
    tokens = sorted(
        {
            member.records[m].tokens
            for member in release.members.values()
            for m, _, _ in shown
            if m in member.records
        }
    )
    yield (
        f"In parentheses 95% bootstrap intervals, on {_and(f'{n:,}' for n in tokens)} held-out tokens. FVE: fraction "
        "of variance explained. CE: cross-entropy of the language model in nats per token; the score is 1 where the "
        "SAE loses nothing, 0 where it is no better than ablating the activation. All records are in `eval/`."
    )


def _hierarchy(release: Release) -> Iterator[str]:
    rows = [row for member in release.members.values() for row in _null_rows(member)]
    if not rows:
        yield "No number about the hierarchy was measured beside its nulls, so none is stated here."
        return
    yield _table(
        ("SAE", "value", "trained", "parents shuffled", "untrained", "above shuffled", "above untrained"),
        rows,
    )
    yield (
        "A number about a hierarchy says something only beside what it would be without one: the same SAE with the "
        "parents shuffled among features of like density, and the SAE that training started from, under the learned "
        "parents if it started without any. An interval of the difference that holds 0 means no clear difference."
    )


def _null_rows(member: Member) -> Iterator[tuple[str, ...]]:
    """The headline values about the hierarchy that were measured on a null, too."""
    for spec in MEASURES.values():
        record = member.records.get(spec.name)
        if record is None:
            continue
        for column in spec.columns:
            nulls = [record.value.get(column.value + end) for end in (SHUFFLED, UNTRAINED)]
            if (
                column.value not in spec.nulls
                or record.value.get(column.value) is None
                or nulls == [None, None]
            ):
                continue
            ends = ("", SHUFFLED, UNTRAINED, OVER_SHUFFLED, OVER_UNTRAINED)
            cells = [_cell(record, column.value + end) for end in ends]
            yield f"`{member.name}`", f"{column.title} (`{spec.name}`)", *cells


def _value(records: dict[str, Record], measure: str, name: str) -> float | None:
    record = records.get(measure)
    return None if record is None else record.value.get(name)


def _cell(record: Record | None, name: str) -> str:
    value = None if record is None else record.value.get(name)
    if record is None or value is None:
        return DASH
    interval = record.interval.get(name)
    return number(value) + (f" ({number(interval[0])} to {number(interval[1])})" if interval else "")


# -- the rest


def _what_is_here(release: Release, repo: str, preview: Preview | None) -> Iterator[str]:
    rows = [("`config.json`", "what is in this repository, for programs")]
    rows += [
        (f"`{member.folder}/`", f"the SAE `{member.name}`: `cfg.json`, `sae_weights.safetensors`")
        for member in release.members.values()
    ]
    there = {path.partition("/")[0] for path in release.files}
    optional = {
        "config.yaml": "the run's whole configuration: `saeforest train --config config.yaml` repeats it",
        "eval": "records of all measures, with settings, intervals and bootstrap replicates",
        "forest": "parents inferred for an SAE that learns none",
        "index": "what the explorer shows: for each feature, the text that activates it",
        "log.jsonl": "the training log",
        "logs": "the training logs",
    }
    rows += [
        (f"`{name}{'' if '.' in name else '/'}`", what) for name, what in optional.items() if name in there
    ]
    if preview is not None:
        rows.append(
            (f"`{PREVIEW}/`", "a family as a picture and as a page that opens in a browser without a server")
        )
    yield _table(("", ""), rows)
    if any(member.has_index for member in release.members.values()):
        yield "The index holds passages of the training text."


def _license(release: Release, license_id: str | None) -> str:
    of_model = " The language model and the text have licenses of their own." if release.model else ""
    given = (
        f"These weights are under the license `{license_id}`."
        if license_id
        else "No license was given for these weights."
    )
    return given + of_model


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _and(words: Iterable[str]) -> str:
    found = list(words)
    return " and ".join(filter(None, (", ".join(found[:-1]), found[-1]))) if found else ""
