"""MLflow: where its environment says (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

from .sink import PROJECT, Start

# Limits of MLflow: parameters in one call, and characters of a parameter in its oldest stores.
_MOST_PARAMS, _LONGEST_PARAM = 100, 500


class Mlflow:
    """A run of MLflow, found again by its id."""

    def __init__(self, start: Start) -> None:
        self._client = MlflowClient()
        if start.id is not None:
            self.id = start.id
            self._client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        there = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if there is None else there.experiment_id
        run = self._client.create_run(experiment, run_name=start.name, tags={"group": start.group})
        self.id = run.info.run_id
        params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in _flat(start.config)]
        for i in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self.id, params=params[i : i + _MOST_PARAMS])

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send the numbers of a step."""
        now = int(time.time() * 1000)
        self._client.log_batch(self.id, metrics=[Metric(key, x, now, step) for key, x in values.items()])

    def close(self, finished: bool) -> None:
        """Mark the run as finished, or as stopped."""
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


def open_sink(start: Start) -> Mlflow:
    """Open a run for an SAE, or go on with an earlier one."""
    return Mlflow(start)


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
