"""trackio: local, or a Space or server that its environment names (TRACKIO_SPACE_ID, TRACKIO_SERVER_URL)."""

from __future__ import annotations

import os
from contextvars import Context

import trackio  # pyright: ignore[reportMissingImports]

from .sink import PROJECT, Start


class Trackio:
    """A run of trackio, which finds it again by its name."""

    def __init__(self, start: Start) -> None:
        self.id = start.id or f"{start.name}-{start.fresh}"
        # Opening a run ends the one before it in the same context, and there may be several SAEs.
        self._run = Context().run(
            trackio.init,
            project=os.environ.get("TRACKIO_PROJECT") or PROJECT,
            name=self.id,
            group=start.group,
            config=start.config,
            resume="allow",
            embed=False,
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Queue the numbers of a step: trackio sends them in the background."""
        self._run.log(values, step=step)

    def close(self, finished: bool) -> None:
        """Send what waits."""
        self._run.finish()


def open_sink(start: Start) -> Trackio:
    """Open a run for an SAE, or go on with an earlier one."""
    return Trackio(start)
