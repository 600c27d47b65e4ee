"""`saeforest verify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..output import say, say_json
from .arguments import parse
from .shared import Json


@dataclass(frozen=True)
class VerifyArguments:
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Anything that saeforest wrote: a run, an SAE, activations, an index, a forest, records, or one file."""
    json: Json = False


def verify(argv: Sequence[str]) -> int:
    args = parse(VerifyArguments, argv, "verify")
    from ..verify import summary
    from ..verify import verify as verified

    findings = verified(args.path)
    damaged = any(not finding.sound and not finding.leftover for finding in findings)
    if args.json:
        files = [
            {
                "path": str(f.path),
                "sound": f.sound,
                "checksum": f.has_checksum,
                "leftover": f.leftover,
                "problem": f.problem or None,
                "remedy": None if f.sound else f.remedy,
            }
            for f in findings
        ]
        say_json({"sound": not damaged, "files": files})
        return int(damaged)
    for finding in findings:
        if not finding.sound:
            say(str(finding))
    say(summary(findings))
    return int(damaged)
