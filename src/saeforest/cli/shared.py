"""Arguments that several commands have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="Folder of the run.")]
RunOrSAE = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="RUN|SAE",
        help="Folder of a run, or an SAE without a run: its folder, or its name on the Hub.",
    ),
]
OneSAE = Annotated[
    str | None,
    tyro.conf.arg(metavar="NAME", help="Which SAE of the run to use. Default: the only one."),
]
Device = Annotated[
    str | None,
    tyro.conf.arg(help="Device of the models: cpu, cuda, or cuda:N. Default: that of the training run."),
]
Force = Annotated[
    bool,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.arg(help="Replace what an earlier export left at the same place."),
]
Json = Annotated[
    bool,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.arg(help="Print the result as one JSON document."),
]


@dataclass(frozen=True)
class Reads:
    """What an SAE without a run reads."""

    model: str = ""
    """Language model of an SAE without a run. Default: the one in its metadata."""
    site: str = ""
    """Site of an SAE without a run. Default: the one in its metadata."""
    data: str = ""
    """Text for an SAE without a run. Default: the packaged text."""


ReadsOptions = Annotated[Reads, tyro.conf.arg(name="")]
