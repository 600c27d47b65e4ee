"""The ranks that train the SAEs of a run together: by sharing the rows of every batch, or each with SAEs of its own.

Both ways every rank reads the same batches, the first rank has all there is to save, and only it writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..activations import ActivationStream
from ..config import TrainConfig
from ..errors import InputError
from ..kernels import sharing
from ..ranks import ALONE, Ranks
from ..saes import Event, Training
from .checkpoint import restore, tensors_of
from .log import Log, MemoryLog


@dataclass(frozen=True)
class Division:
    """What several ranks divide."""

    spread: Literal["auto", "rows", "saes"] = "auto"
    """The rows of every batch, or whole SAEs. auto: saes if the run has several, and at least as many as ranks."""
    shards: int = 1
    """The number of ranks among which the rows of the dictionary are divided. Their other factor divides the batch."""


# With fewer rows a rank has next to nothing to do, and sums of a matrix product may take another order.
_LEAST_ROWS = 8


class Team:
    """Ranks that share the rows of every batch in what is costly (`kernels.sharing`), and do all else alike.

    So they have the same weights, counters and forest at every step, bit for bit those of a single process. With one
    rank this is an ordinary run.
    """

    has_all = True
    """Whether every rank has the present state of all SAEs."""

    def __init__(self, ranks: Ranks = ALONE, division: Division | None = None) -> None:
        self.ranks, self.division = ranks, division or Division()

    def own(self, names: list[str]) -> list[str]:
        """Those of the SAEs that this rank steps."""
        return names

    def sharing(self) -> AbstractContextManager[None]:
        """Around a step."""
        return sharing(self.ranks)

    def log(self, name: str) -> Log:
        """The log of an SAE where there is no folder to write to."""
        return MemoryLog()

    def begin(self, trained: Mapping[str, Training], stream: ActivationStream, start: int) -> int:
        """Bring all ranks to the state of the first, after step `start`. Returns that step."""
        ranks = self.ranks
        if ranks.size == 1:
            return start
        self._begin(trained)
        told: list[Any] = ranks.from_first(lambda: [start, stream.state()])
        start, place = told
        if not ranks.first:
            stream.restore(place)
        return start

    def _begin(self, trained: Mapping[str, Training]) -> None:
        for training in trained.values():
            shared = self.ranks.share(tensors_of(training) if self.ranks.first else None)
            if not self.ranks.first:
                restore(training, shared)

    def gather_logs(self, logs: Mapping[str, Log]) -> None:
        """Bring what other ranks have logged to the first."""

    def gather_state(self, trained: Mapping[str, Training], step: int) -> None:
        """Bring the state after step `step` to the first rank. Raises InputError if ranks that should agree differ."""
        check_same(trained, step, self.ranks)

    def save(
        self,
        step: int,
        trained: Mapping[str, Training],
        logs: Mapping[str, Log],
        write: Callable[[int], None],
    ) -> None:
        """Let the first rank `write` the state after step `step`. Raises OSError there if it cannot."""
        self.gather_logs(logs)
        self.gather_state(trained, step)
        errors: list[OSError] = []

        def tried() -> None:
            try:
                write(step)
            except OSError as error:  # the others must hear that they need not wait any longer
                errors.append(error)

        self.ranks.from_first(tried)
        for error in errors:
            raise error


class SpreadTeam(Team):
    """Ranks that train SAEs of their own. The first has a copy of all, which is brought up to date to be saved."""

    has_all = False

    def __init__(self, ranks: Ranks, division: Division, owner: Mapping[str, int]) -> None:
        """owner: the rank that trains each SAE, by name."""
        super().__init__(ranks, division)
        self.owner = owner

    def own(self, names: list[str]) -> list[str]:
        return [name for name in names if self.owner[name] == self.ranks.rank]

    def sharing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def log(self, name: str) -> Log:
        return Posted()

    def _begin(self, trained: Mapping[str, Training]) -> None:
        for name, rank in self._of_others().items():
            if self.ranks.first:
                self.ranks.send(tensors_of(trained[name]), rank)
                trained[
                    name
                ].optimizer.state.clear()  # twice the weights, and only a checkpoint needs it here
            elif rank == self.ranks.rank:
                restore(trained[name], self.ranks.receive(0))

    def gather_logs(self, logs: Mapping[str, Log]) -> None:
        posted = {name: log for name, log in logs.items() if isinstance(log, Posted)}
        for of_rank in self.ranks.to_first({name: log.lines for name, log in posted.items()}):
            for name, lines in of_rank.items():
                for line, moves in lines:
                    if moves is None:
                        logs[name].step(line)
                    else:
                        logs[name].event(Event(line, [(f, old, new) for f, old, new in moves]))
        for log in posted.values():
            log.lines.clear()

    def gather_state(self, trained: Mapping[str, Training], step: int) -> None:
        for name, rank in self._of_others().items():
            if self.ranks.first:
                restore(trained[name], self.ranks.receive(rank))
            elif rank == self.ranks.rank:
                self.ranks.send(tensors_of(trained[name]), 0)

    def save(
        self,
        step: int,
        trained: Mapping[str, Training],
        logs: Mapping[str, Log],
        write: Callable[[int], None],
    ) -> None:
        super().save(step, trained, logs, write)
        for name in self._of_others():
            if self.ranks.first:
                trained[name].optimizer.state.clear()

    def _of_others(self) -> dict[str, int]:
        return {name: rank for name, rank in self.owner.items() if rank}


@dataclass
class Posted:
    """The log of an SAE on the rank that trains it, until the first rank gets it."""

    lines: list[tuple[dict[str, Any], list[Any] | None]] = field(default_factory=list)
    """Lines of log.jsonl; with the moves of an event, or None for a step."""

    def step(self, line: dict[str, Any]) -> None:
        self.lines.append((line, None))

    def event(self, event: Event) -> None:
        self.lines.append((event.log, list(event.moves)))

    def sync(self) -> None:
        pass

    def finish(self, step: int) -> None:
        pass


def team_of(ranks: Ranks, config: TrainConfig, division: Division) -> Team:
    """The team that trains the SAEs of `config`.

    Raises InputError if there are more ranks than SAEs to spread over them, or than a batch has rows for, or if ranks
    or systems cannot be divided so.
    """
    spread, shards = division.spread, division.shards
    names = list(config.members())
    if shards > 1:
        from .sharded import ShardedTeam, check_sharded  # which is built on this module

        for member in config.members().values():
            check_sharded(member.sae, shards)
        if ranks.size % shards:
            raise InputError(f"shards = {shards}: expected a divisor of the number of ranks, {ranks.size}")
        return ShardedTeam(ranks, division)
    if ranks.size == 1:
        return Team(ranks, division)
    if spread == "saes" and len(names) < ranks.size:
        many = "one SAE" if len(names) == 1 else f"{len(names)} SAEs"
        raise InputError(
            f"spread = saes: {ranks.size} ranks, but the run trains {many}; start fewer ranks, or spread the rows"
        )
    if spread != "rows" and len(names) >= ranks.size:
        return SpreadTeam(ranks, division, {name: i % ranks.size for i, name in enumerate(names)})
    if config.batch_size < _LEAST_ROWS * ranks.size:
        raise InputError(
            f"optim.batch_size = {config.batch_size}: expected {_LEAST_ROWS * ranks.size} or more, {_LEAST_ROWS} rows "
            f"for each of {ranks.size} ranks; start fewer ranks"
        )
    return Team(ranks, division)


def check_same(trained: Mapping[str, Training], step: int, ranks: Ranks) -> None:
    """Raise InputError on all ranks if the trainings of one of them differ from those of the first by a bit."""
    if ranks.size == 1:
        return
    own = torch.tensor([digest(trained)])
    every = ranks.gather(own, lengths=[1] * ranks.size).tolist()
    if other := [rank for rank, found in enumerate(every) if found != every[0]]:
        raise InputError(
            f"step {step}: the weights on rank {other[0]} differ from those on rank 0; resume from the last "
            "checkpoint, on machines with the same processors and the same libraries"
        )


def digest(trained: Mapping[str, Training]) -> int:
    """A number that differs if any tensor of the trainings does, by a bit."""
    found = hashlib.blake2b(digest_size=8)
    for training in trained.values():
        # Sorted: the optimizer lists its state in another order where that was read from elsewhere.
        for _, tensor in sorted(tensors_of(training).items()):
            found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return int.from_bytes(found.digest(), "little", signed=True)
