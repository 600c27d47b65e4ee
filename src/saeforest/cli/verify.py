"""`saeforest verify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..output import say
from .arguments import parse
from .common import doc


@dataclass(frozen=True)
class _Verify:
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """A run, a trained SAE, a checkpoint, harvested activations, an index, a forest, records or results."""


def verify(argv: Sequence[str]) -> int:
    """Check every file of a folder against its checksum and its form; say what is damaged, and what can be mended."""
    args = parse(_Verify, argv, "verify", doc(verify))
    from ..verify import summary
    from ..verify import verify as verified

    findings = verified(args.path)
    for finding in findings:
        if not finding.sound:
            say(str(finding))
    say(summary(findings))
    return int(any(not finding.sound and not finding.leftover for finding in findings))
