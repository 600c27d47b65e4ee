"""TensorBoard: event files in RUN/sinks/tensorboard."""

from __future__ import annotations

import json

from torch.utils.tensorboard import SummaryWriter

from .sink import Start


class TensorBoard:
    """A folder of event files, which `id` names: the same folder goes on."""

    def __init__(self, start: Start) -> None:
        self.id = "/".join(filter(None, ("tensorboard", start.sae)))
        self._writer = SummaryWriter(str(start.folder / self.id))
        if start.id is None:
            self._writer.add_text("config", f"```json\n{json.dumps(start.config, indent=2)}\n```", 0)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the numbers of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        """Close the file."""
        self._writer.close()


def open_sink(start: Start) -> TensorBoard:
    """Open the event files of an SAE."""
    return TensorBoard(start)
