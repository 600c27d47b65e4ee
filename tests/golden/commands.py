"""Runs saeforest commands one after another, each as `python -m saeforest ...` would.

One process for all of them, as its imports take longer than a golden run. The arguments come as JSON.
"""

from __future__ import annotations

import json
import runpy
import sys


def run(commands: list[list[str]]) -> None:
    for arguments in commands:
        sys.argv = ["saeforest", *arguments]
        try:
            runpy.run_module("saeforest", run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            if stop.code:
                sys.exit(stop.code)


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
