"""`saeforest mcp`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..output import note, say_json
from .arguments import parse
from .common import named
from .shared import Device, OneSAE, Run


@dataclass(frozen=True)
class McpArguments:
    run: Run
    sae: OneSAE = None
    device: Device = None
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the lines that configure a client to start this server, as one JSON document, and exit."""


def mcp(argv: Sequence[str]) -> None:
    args = parse(McpArguments, argv, "mcp")
    from ..extras import needs

    with needs("mcp", "the MCP server"):
        from ..explore.serving.mcp_tools import serve
    from ..explore.api import Api
    from ..run_folder import RunFolder

    run = RunFolder(args.run)
    api = Api.of_run(run, named(run, args.sae), args.device)
    if args.json:
        say_json({"mcpServers": {"saeforest": {"command": sys.executable, "args": _arguments(args)}}})
        return
    note(f"{run}: serving {api.name} to an MCP client on the standard streams; Ctrl-C stops it")
    serve(api)


def _arguments(args: McpArguments) -> list[str]:
    """What the program is given to start this server from any folder."""
    options = {"--sae": args.sae, "--device": args.device}
    given = [word for name, value in options.items() if value is not None for word in (name, value)]
    return ["-m", "saeforest", "mcp", str(Path(args.run).resolve()), *given]
