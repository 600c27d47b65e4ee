"""Runs in the environment of one library: trains one SAE from beginning to end by the library's own loop.

The request is a line of JSON on stdin, the answer one on stdout. Whatever else is printed goes to stderr.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys

import numpy as np
import torch

from .case import Case
from .watch import Watch
from .worker import driver


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    case = Case.from_json(request["case"])
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    rows, others = (torch.from_numpy(np.load(request[name], mmap_mode="c")) for name in ("rows", "others"))
    settings = {key: request.get(key) for key in ("looks", "warmup", "dead_steps", "lr")}
    watch = Watch(rows[: request["steps"] * case.batch], others, case.batch, **settings)
    train = driver(case.library).train
    watch.begin()
    train(case, watch)
    watch.look(watch.steps)
    version = importlib.metadata.version(case.library)
    answers.write(json.dumps({"version": version, "looks": watch.found}) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
