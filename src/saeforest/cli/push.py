"""`saeforest push`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from ..output import note, say, say_json
from ..stopping import Interrupted
from .arguments import parse
from .common import say_lines
from .shared import Json, Run


@dataclass(frozen=True)
class PushArguments:
    run: Run
    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ORG/NAME")]
    """Repository on the Hub, made if there is none."""
    public: tyro.conf.FlagCreatePairsOff[bool] = False
    """Let everybody see the repository, once all is there. Default: a new repository is private."""
    license: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """License of the weights by the Hub's identifier, such as mit or apache-2.0. Default: none is stated."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show the model card and the files without asking the Hub, and exit."""
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace a release of other SAEs, files of somebody else, and a model card that was changed on the Hub."""
    json: Json = False


def push(argv: Sequence[str]) -> None:
    args = parse(PushArguments, argv, "push")
    from ..release.push import check_names, staged
    from ..release.push import push as push_run
    from ..run_folder import RunFolder

    run = RunFolder(args.run)
    if args.dry_run:
        check_names(args.repo, args.license)
        with staged(run, args.repo, args.license) as found:
            if args.json:
                say_json({"repo": args.repo, "card": found.card, "files": found.sizes})
                return
            say_lines(found.card)
            say()
            for name, size in found.sizes.items():
                say(f"{size:>15,}  {name}")
            note(
                f"{len(found.sizes):,} files, {sum(found.sizes.values()) / 1e6:,.1f} MB; nothing was uploaded"
            )
        return
    try:
        done = push_run(run, args.repo, public=args.public, license_id=args.license, force=args.force)
    except Interrupted as stop:
        raise Interrupted("stopped; the same command goes on where it stopped", stop.signum) from None
    if args.json:
        say_json(asdict(done))
        return
    size, state = sum(done.files.values()), "private" if done.private else "public"
    what = (
        f"{len(done.files):,} files, {size / 1e6:,.1f} MB" if done.changed else "everything was there already"
    )
    say(f"{done.url} ({state}): {what}, commit {done.commit[:12]}")
    for name in done.saes.values():
        say(f'Load it with saeforest.load("{name}")')
