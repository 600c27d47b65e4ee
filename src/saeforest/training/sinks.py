"""The sinks of a run: which there are, and which remote run belongs to which SAE."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from secrets import token_hex
from types import TracebackType
from typing import Any

from pydantic import Field

from ..config import TrainConfig, to_dict
from ..errors import InputError
from ..files import read_json, write_json
from ..output import note
from ..run_folder import RunFolder
from ..saes import Event
from ..schema import Count, Schema, checked
from ..sinks.feed import PATIENCE_S, START, Feed, Place
from ..sinks.names import SINKS, SinkName, installed, opener
from ..sinks.sink import Start
from .log import LOG, Log, read_lines


class _Remote(Schema):
    """Where a sink is with an SAE. step, n: the last line that it has; see `Place`."""

    id: str | None = None
    step: int = -1
    n: Count = 0


class _State(Schema):
    """The file RUN/sinks/state.json: by sink and by SAE."""

    sinks: dict[SinkName, dict[str, _Remote]] = Field(default_factory=dict)


class Sinks:
    """A context in which the log of each SAE goes into sinks too; it yields these logs, in the order of `logs`.

    names: of sinks to open, besides those that an earlier process of the run had. A remote run that was opened before
        goes on, and first gets the lines that it lacks. A note tells of a sink that cannot be opened.
    logs:  the log of each SAE, by its name.
    """

    def __init__(
        self,
        run: RunFolder | None,
        names: Sequence[SinkName],
        config: TrainConfig,
        logs: Mapping[str, Log],
    ) -> None:
        self._run, self._config, self._logs = run, config, logs
        self._state = _read(run)
        self._names: list[SinkName] = [name for name in SINKS if name in names or name in self._state.sinks]
        self._feeds: dict[tuple[SinkName, str], Feed] = {}

    def __enter__(self) -> list[Log]:
        if self._run is None or not self._names:
            return list(self._logs.values())
        beside = []
        for sae, log in self._logs.items():
            feeds = [feed for name in self._names if (feed := self._opened(name, sae)) is not None]
            beside.append(_Beside(log, feeds, self.save))
        self.save()
        return beside

    def _opened(self, name: SinkName, sae: str) -> Feed | None:
        assert self._run is not None
        run, several = self._run, self._run.several
        there = self._state.sinks.get(name, {}).get(sae, _Remote())
        title = run.path.resolve().name
        start = Start(
            name=f"{title}/{sae}" if several else title,
            group=title,
            id=there.id,
            fresh=token_hex(4),
            config=to_dict(self._config.members()[sae]),
            sae=sae if several else "",
            folder=run.sinks,
        )
        said = f"{name} of {sae}" if several else name
        if not installed(name):
            note(f"{said}: its package is not installed; training goes on without it")
            return None
        try:
            with redirect_stdout(sys.stderr):  # what it says is no result
                sink = opener(name)(start)
        except Exception as error:  # whatever a tool may raise
            why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            note(f"{said}: {why[:300]}; training goes on without it, and the log in log.jsonl is whole")
            self._state.sinks.setdefault(name, {}).setdefault(sae, there)
            return None
        feed = Feed(said, sink, Place(there.step, there.n) if there.id is not None else START)
        path = run.logs(sae) / LOG
        for line in read_lines(path)[0] if path.is_file() else ():
            feed.put(line)
        self._feeds[name, sae] = feed
        return feed

    def save(self) -> None:
        """Note where each sink is, for a process that goes on."""
        if self._run is None or not self._names:
            return
        state: dict[str, dict[str, Any]] = {
            name: {sae: remote.model_dump() for sae, remote in saes.items()}
            for name, saes in self._state.sinks.items()
        }
        for (name, sae), feed in self._feeds.items():
            sent = feed.sent
            state.setdefault(name, {})[sae] = {"id": feed.id, "step": sent.step, "n": sent.n}
        try:
            write_json(self._run.sinks_file, {"sinks": state})
        except OSError as error:
            note(f"{self._run.sinks_file}: {error.strerror}; a resumed run may repeat lines in its sinks")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with redirect_stdout(sys.stderr):
                for feed in self._feeds.values():
                    feed.end(finished=kind is None)
                until = time.monotonic() + PATIENCE_S
                for feed in self._feeds.values():
                    feed.wait(until - time.monotonic())
        finally:
            self.save()


class _Beside:
    """A log that hands each line to sinks as well. save: notes where these are."""

    def __init__(self, log: Log, feeds: Sequence[Feed], save: Callable[[], None]) -> None:
        self._log, self._feeds, self._save = log, feeds, save

    def step(self, line: dict[str, Any]) -> None:
        self._log.step(line)
        for feed in self._feeds:
            feed.put(line)

    def event(self, event: Event) -> None:
        self._log.event(event)
        for feed in self._feeds:
            feed.put(event.log)

    def sync(self) -> None:
        self._log.sync()
        self._save()

    def finish(self, step: int) -> None:
        self._log.finish(step)


def _read(run: RunFolder | None) -> _State:
    """What an earlier process of the run noted; nothing if it can't be read, so that remote runs begin anew."""
    if run is None or not run.sinks_file.is_file():
        return _State()
    try:
        return checked(_State, read_json(run.sinks_file), run.sinks_file)
    except InputError as error:
        note(f"{error}; earlier sinks are unknown, and those that are given now begin new remote runs")
        return _State()
