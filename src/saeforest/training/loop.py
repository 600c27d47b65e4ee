"""The training loop, for SAEs of all systems."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..activations import ActivationStream
from ..config import TrainConfig, resolve_device
from ..errors import InputError
from ..optim import learning_rate
from ..output import note
from ..progress import progress
from ..run_folder import RunFolder
from ..saes import Step, Training, save_sae
from ..saes.training import NotFinite
from ..sinks.names import SinkName
from ..stopping import NEVER, stopping
from .checkpoint import SINGLE, Parts, is_saved, latest_checkpoint, load_checkpoint, save_checkpoint
from .log import Log, RunLog, describe_step, peak_memory_mb
from .sinks import Sinks
from .team import Team, WholeTeam


@dataclass
class Trainee:
    """One of the SAEs that a run trains, and the time its steps take."""

    name: str
    training: Training
    of: str = ""
    """Addition to messages that names the SAE, if the run trains several."""
    seconds: float = 0.0
    """Seconds spent in its steps so far."""

    def step(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"] | None = None) -> Step:
        """Run one training step, as `Training.step` does. Raises InputError if the loss is infinite or NaN."""
        begin = time.perf_counter()
        try:
            return self.training.step(x, target)
        except NotFinite as error:
            raise InputError(error.said(self.of)) from None
        finally:
            self.seconds += time.perf_counter() - begin


def train(
    config: TrainConfig,
    trained: Mapping[str, Training],
    stream: ActivationStream,
    run: RunFolder | None,
    *,
    fingerprint: str = "",
    about: Mapping[str, Any] | None = None,
    lm_seconds: Callable[[], float] = lambda: 0.0,
    sinks: Sequence[SinkName] = (),
    team: Team | None = None,
) -> dict[str, Log]:
    """Train SAEs on the same batches to the end of their run, and save each under its name in `run`.

    If the run has a checkpoint, training continues from the latest one.

    run: the run's folder. None: no files are written, logs are kept in memory, and signals are left to the caller.
    fingerprint, about: saved in checkpoints; see `save_checkpoint`.
    lm_seconds: returns the seconds spent in the language model so far, for the log.
    sinks: where the log goes besides the run's folder. Those of an earlier process of the run go on by themselves.
    team: the ranks that train together, and how. None: this process alone. Only the first rank has a `run`.

    Returns the log of each SAE. If the disk has no room for a checkpoint, it is skipped and a note says so.

    Raises:
        Interrupted: a signal asked to stop; a checkpoint has been saved.
        InputError: a loss is infinite or NaN.
        OSError: the logs, an SAE, or the checkpoint before stopping cannot be written.
    """
    team = team or WholeTeam()
    trainees = {
        name: Trainee(name, trained[name], f" of {name}" if config.saes else "")
        for name in team.own(list(trained))
    }
    kept = {name if config.saes else SINGLE: training for name, training in trained.items()}
    first = next(iter(trained.values()))
    n_steps, batch_size, device = first.run.n_steps, stream.batch_size, resolve_device(config.device)
    start = 0
    if run is not None and (checkpoint := latest_checkpoint(run.checkpoints)):
        start = load_checkpoint(checkpoint, kept, stream, fingerprint)
    start = team.begin(kept, stream, start)
    own: dict[str, Log] = {
        name: team.log(name) if run is None else RunLog(run.logs(name), resume_at=start) for name in trained
    }
    clock = _Clock(stream, lm_seconds, list(trainees.values()))
    saved_at = time.monotonic()

    place = stream.state()  # where the batch of the next step begins
    place_after = start  # the step that ended there
    writing = threading.Lock()

    def write(step: int, parts: Parts | None = None) -> None:
        if run is None:
            return
        with writing:
            for log in logs.values():
                log.sync()
            save_checkpoint(run.checkpoints, step, kept, place, fingerprint, about, parts)

    def rescue() -> str:
        """Save the last whole step after another rank was lost in the next one. Returns what was saved.

        May be called in another thread, when this one is stuck: then it may be anywhere, also in `write`. It begins no
        step meanwhile, since its next exchange waits for the end of this.
        """
        if run is None:
            return ""
        if run.is_trained():
            return f"the run in {run} is complete"
        step = min(training.done for training in trained.values())
        whole = team.has_all and step and step == place_after
        if not whole or any(t.done != step or not t.at_rest for t in trained.values()):
            last = latest_checkpoint(run.checkpoints)
            return "nothing was saved" if last is None else f"the last checkpoint is {last}"
        with writing:
            pass  # by the other thread
        if not is_saved(run.checkpoints, step):
            write(step)
        return f"a checkpoint of step {step:,} of {n_steps:,} is saved in {run}"

    with (
        closing(stream),
        Sinks(run, sinks, config, own) as opened,
        nullcontext(NEVER) if run is None and team.ranks.first else stopping("it") as stopped,
        progress("train", n_steps * batch_size, before=start * batch_size) as advance,
        team.ranks.rescue(rescue),
    ):
        logs = dict(zip(own, opened, strict=True))
        if start == 0 and (harvest := lm_seconds()):
            for log in logs.values():
                log.step(
                    {"event": "harvest", "step": 0, "seconds": {"lm": round(harvest, 3)}} | stream.harvest
                )
        for step in range(start + 1, n_steps + 1):
            batch = stream.next()
            x = batch.x.to(device).float()
            target = None if config.target is None else batch.others[config.target].to(device).float()
            logged = step % config.log_every == 0 or step in (1, n_steps)
            clock.steps += 1
            losses, lines = [], []
            for name, trainee in trainees.items():
                with team.sharing():
                    done = trainee.step(x, target)
                for event in done.events:
                    logs[name].event(event)
                losses.append(f"{float(done.loss.detach()):.4f}")
                if logged:
                    lines.append(describe_step(trainee.training, x if target is None else target, done))
            for trainee, line, lap in zip(
                trainees.values(), lines, clock.lap() if logged else [], strict=False
            ):
                rate = learning_rate(trainee.training.optim, step, n_steps)
                line = {"step": step, "tokens": step * batch_size, "lr": rate} | line | lap
                logs[trainee.name].step(line)
            advance(batch_size, "loss " + " ".join(losses[:4]) + (" ..." if len(losses) > 4 else ""))

            if logged:
                team.gather_logs(logs)
            place, place_after = stream.state(), step
            due = 0 < config.checkpoint_minutes * 60 < time.monotonic() - saved_at
            stop, due = team.ranks.agree(stopped(), due)
            if stop and step < n_steps:
                team.save(step, kept, logs, write)
                where = "" if run is None else f" in {run}"  # only the first rank knows the run's folder
                raise stopped.interrupted(
                    f"stopped after step {step:,} of {n_steps:,}; a checkpoint is saved{where}"
                )
            if due or step == n_steps:
                try:
                    team.save(step, kept, logs, write)
                except OSError as error:
                    note(
                        f"step {step:,}: checkpoint not saved: {error.filename}: {os.strerror(error.errno or 0)}; "
                        "training continues"
                    )
                saved_at = time.monotonic()
        team.gather_weights(kept)
        if not team.ranks.first:
            return own
        for log in logs.values():
            log.finish(n_steps)
        for name, training in trained.items():
            sae = training.finish()
            if run is not None:
                save_sae(sae, run.sae(name))
        if run is not None:
            shutil.rmtree(run.checkpoints, ignore_errors=True)
    return own


def fit(training: Training, stream: ActivationStream) -> Iterator[Step]:
    """Train one SAE without a folder or a log, for toy examples and tests: each `next` runs one step."""
    for _ in range(training.done, training.run.n_steps):
        yield training.step(stream.next().x.to(training.sae.device).float())


class _Clock:
    """Measures the time between two logged steps: in the language model, for the data, and in each SAE.

    `data` is the time that training waited for data, minus the time of the language model. If the language model runs
    in the background, its time overlaps with that of the SAEs and may be longer than the wait; then `data` is 0.
    """

    def __init__(
        self, stream: ActivationStream, lm_seconds: Callable[[], float], trainees: list[Trainee]
    ) -> None:
        self._stream, self._lm_seconds, self._trainees = stream, lm_seconds, trainees
        self.steps = 0
        self._mark = self._now()

    def _now(self) -> list[float]:
        run = [time.perf_counter(), self._stream.seconds, self._lm_seconds()]
        return run + [t.seconds for t in self._trainees]

    def lap(self) -> list[dict[str, Any]]:
        """The times since the last call, for the log of each SAE."""
        now = self._now()
        total, fetch, lm, *saes = (b - a for a, b in zip(self._mark, now, strict=True))
        tokens_per_s = round(self.steps * self._stream.batch_size / max(total, 1e-9), 1)
        memory = round(peak_memory_mb(), 1)
        self._mark, self.steps = now, 0
        return [
            {
                "tokens_per_s": tokens_per_s,
                "seconds": {"lm": round(lm, 3), "data": round(max(fetch - lm, 0.0), 3), "sae": round(sae, 3)},
                "peak_memory_mb": memory,
            }
            for sae in saes
        ]
