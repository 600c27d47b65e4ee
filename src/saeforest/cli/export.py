"""`saeforest export`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ..errors import InputError
from ..interop.neuronpedia.config import NeuronpediaConfig
from ..output import note, say, say_json
from .arguments import parse
from .common import named, positive
from .shared import Device, Force, Json, OneSAE

if TYPE_CHECKING:
    from ..interop.exports import Exported
    from ..run_folder import RunFolder

# A page of more bytes is slow to open and to send.
_LARGE = 10_000_000


@dataclass(frozen=True)
class DelphiArguments:
    """Options of delphi alone."""

    splits: int = 5
    """Number of files that the features are divided among."""


@dataclass(frozen=True)
class NeuronpediaArguments(NeuronpediaConfig):
    """Options of neuronpedia alone."""

    upload: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Upload what is written, with the API key in NEURONPEDIA_API_KEY. An upload that was stopped goes on."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Say what an upload would send, checked against the site's limits, and send nothing."""
    new_model: int | None = None
    """Number of layers of the language model, to create it on Neuronpedia, unlisted. Default: it must be there."""
    api: str = "https://neuronpedia.org/api"
    """Address of the API to upload to."""


@dataclass(frozen=True)
class ExportArguments:
    format: Annotated[
        Literal["html", "delphi", "neuronpedia", "saebench", "saelens", "sparsify", "tree-sae"],
        tyro.conf.Positional,
    ]
    """Format to export to. html: the page that `saeforest explore` shows; delphi: a latents cache that delphi explains
    and scores features from; neuronpedia: files for its import, which can be uploaded too; saebench, saelens,
    sparsify, tree-sae: the weights as these tools load them."""
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run; of formats that hold the weights, also of any SAE that `saeforest.load` reads."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to write, new or empty; with --root, a file."""
    root: Annotated[str | None, tyro.conf.arg(metavar="FEATURE")] = None
    """html: number of a feature, to export it with all features below it and its ancestors as one file."""
    tokens: int | None = None
    """delphi: number of training tokens to read. Default: as many as in training, up to 600,000."""
    force: Force = False
    sae: OneSAE = None
    device: Device = None
    json: Json = False
    delphi: DelphiArguments = field(default_factory=DelphiArguments)
    neuronpedia: NeuronpediaArguments = field(default_factory=NeuronpediaArguments)


#: The options that only some formats have.
_ONLY = {"root": ("html",), "tokens": ("delphi",), "delphi": ("delphi",), "neuronpedia": ("neuronpedia",)}


def export(argv: Sequence[str]) -> None:
    args = parse(ExportArguments, argv, "export")
    default = ExportArguments(args.format, args.run, args.out)
    for name, formats in _ONLY.items():
        if args.format not in formats and getattr(args, name) != getattr(default, name):
            raise InputError(
                f"--{name}: an option of {', '.join(formats)}, not of {args.format}; leave it out"
            )
    if args.tokens is not None:
        positive(args, "tokens")
    _FORMATS[args.format](args)


def _html(args: ExportArguments) -> None:
    from ..explore.api import Api
    from ..explore.serving.static import check_file, check_folder, export_everything, export_subtree

    if args.root is None:
        if args.out.suffix.lower() in (".html", ".htm"):
            raise InputError(
                f"--out {args.out}: the name of a file; give --root FEATURE to export a subtree into it, or a folder "
                "for everything"
            )
        check_folder(args.out, args.force)
    else:
        check_file(args.out, args.force)
    run, name = _run(args)
    api = Api.of_run(run, name, args.device, static=True, make_index=True, feature=args.root)
    if args.root is None:
        done = export_everything(api, args.out, force=args.force)
    else:
        done = export_subtree(api, int(args.root), args.out, force=args.force)
    if args.root is not None and done.size > _LARGE:
        note(f"{args.out}: {done.size / 1e6:,.0f} MB; a feature with fewer below it makes a smaller file")
    if args.json:
        where = {"file": str(done.path)} if args.root is not None else {"folder": str(done.path)}
        say_json({**where, "features": done.n_features, "files": done.n_files, "bytes": done.size})
        return
    opened = done.path if args.root is not None else done.path / "index.html"
    say(f"{done.n_features:,} features, {done.size / 1e6:,.1f} MB: open {opened} in a browser")


def _delphi(args: ExportArguments) -> None:
    from ..interop.delphi import LATENTS, TOKENIZER, export_delphi

    run, name = _run(args)
    done = export_delphi(
        run,
        args.out,
        tokens=args.tokens,
        splits=args.delphi.splits,
        sae=name,
        device=args.device,
        force=args.force,
    )
    _say(
        args,
        done,
        f"{done.about['activations']:,} activations. In delphi: LatentDataset(raw_dir={str(args.out / LATENTS)!r}, "
        f"tokenizer=AutoTokenizer.from_pretrained({str(args.out / TOKENIZER)!r}), ...)",
    )


def _neuronpedia(args: ExportArguments) -> None:
    from ..interop.neuronpedia.files import export_neuronpedia, is_written
    from ..interop.neuronpedia.upload import KEY, UploadConfig, check_upload, upload

    given = args.neuronpedia
    config = NeuronpediaConfig(**{f.name: getattr(given, f.name) for f in fields(NeuronpediaConfig)})
    there = UploadConfig(given.api, given.new_model)
    if given.upload and not given.dry_run and not os.environ.get(KEY):
        raise InputError(f"--neuronpedia.upload: set {KEY} to the API key of your Neuronpedia account")
    run, name = _run(args)
    if (given.upload or given.dry_run) and is_written(args.out, run, config, name):
        about = {"folder": str(args.out)}
    else:
        done = export_neuronpedia(run, args.out, config, sae=name, device=args.device, force=args.force)
        about = {"folder": str(done.path), "bytes": done.size, **done.about}
        if not args.json:
            say(f"{done.path}: {done.size / 1e6:,.1f} MB, {done.about['features']:,} features that fire")
    if given.upload or given.dry_run:
        plan = check_upload(args.out, there)
        about |= {"plan": plan._asdict()}
        if not args.json:
            size = f"{plan.n_bytes / 1e6:,.1f} MB"
            skipped = f"; {plan.without:,} have no context, and are left out" if plan.without else ""
            say(f"upload: {plan.features:,} features in {plan.batches:,} requests, {size}{skipped}")
    if given.upload and not given.dry_run:
        sent = upload(args.out, os.environ[KEY], there)
        about |= {"url": sent.url, "sent": sent.sent, "sent_before": sent.before}
        if not args.json:
            before = f", {sent.before:,} of them before" if sent.before else ""
            say(f"uploaded {sent.sent + sent.before:,} features{before}: {sent.url}")
    if args.json:
        say_json(about)


def _weights(args: ExportArguments) -> None:
    from ..interop.loading import load
    from ..interop.writers import WRITERS
    from ..run_folder import RunFolder

    run = RunFolder(args.run)
    if run.config_file.is_file():
        _, sae = run.load(named(run, args.sae), "cpu")
    elif args.sae is not None:
        raise InputError(f"--sae {args.sae}: {args.run} is no run; give the folder of the SAE")
    else:
        sae = load(args.run)
    done = WRITERS[args.format](sae, args.out, force=args.force)
    loss = f"; {done.about['loss']}" if "loss" in done.about else ""
    _say(args, done, f"{sae.d_sae:,} features{loss}")


def _run(args: ExportArguments) -> tuple[RunFolder, str]:
    from ..run_folder import RunFolder

    run = RunFolder(args.run)
    return run, named(run, args.sae)


def _say(args: ExportArguments, done: Exported, text: str) -> None:
    if args.json:
        say_json({"folder": str(done.path), "bytes": done.size, **done.about})
    else:
        say(f"{done.path}: {done.size / 1e6:,.1f} MB, {text}")


_FORMATS: dict[str, Callable[[ExportArguments], None]] = {
    "html": _html,
    "delphi": _delphi,
    "neuronpedia": _neuronpedia,
    **dict.fromkeys(("saebench", "saelens", "sparsify", "tree-sae"), _weights),
}
