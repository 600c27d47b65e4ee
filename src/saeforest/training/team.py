"""The ranks that train the SAEs of a run together: by sharing the rows of every batch, or each with SAEs of its own.

Every rank reads the same batches. The first rank has an entry for each SAE, and only it claims the folder and logs.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
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
from .checkpoint import Parts, restore, tensors_of
from .log import Log, MemoryLog


@dataclass(frozen=True)
class Division:
    """What several ranks divide."""

    spread: Literal["auto", "rows", "saes"] = "auto"
    """The rows of every batch, or whole SAEs. auto: saes if the run has several, and at least as many as ranks."""
    shards: int = 1
    """The number of ranks among which the rows of the dictionary are divided. Their other factor divides the batch."""
    whole_checkpoints: bool = False
    """Let the first rank gather checkpoints of a divided dictionary into one file, instead of one for each shard."""


# With fewer rows a rank has next to nothing to do, and sums of a matrix product may take another order.
_LEAST_ROWS = 8


#: Writes the checkpoint of a step on the first rank, and on the others nothing. The tensors are those of this process,
#: or what `Parts` collects.
Write = Callable[[int, Parts | None], None]


class Team(ABC):
    """The ranks that train together. With one rank this is an ordinary run.

    Trainings are by the name of their file in checkpoints; the first rank has an entry for each SAE of the run.
    """

    has_all: bool
    """Whether every rank has the present state of all SAEs."""

    def __init__(self, ranks: Ranks, division: Division | None = None) -> None:
        self.ranks, self.division = ranks, division or Division()

    @abstractmethod
    def own(self, names: list[str]) -> list[str]:
        """Those of the SAEs that this rank steps."""

    def building(self) -> AbstractContextManager[None]:
        """Around making the SAEs on ranks other than the first, which get their state from it."""
        return nullcontext()

    @abstractmethod
    def sharing(self) -> AbstractContextManager[None]:
        """Around a step."""

    @abstractmethod
    def log(self, name: str) -> Log:
        """The log of an SAE where there is no folder to write to."""

    @abstractmethod
    def take_up(self, trained: Mapping[str, Training]) -> None:
        """Take from the first rank the state from which this one goes on."""

    @abstractmethod
    def gather_logs(self, logs: Mapping[str, Log]) -> None:
        """Bring what other ranks have logged to the first."""

    @abstractmethod
    def write(self, step: int, trained: Mapping[str, Training], write: Write) -> None:
        """Let the first rank `write` the state after step `step`.

        Raises OSError there if it cannot be written, and InputError if ranks that should agree differ.
        """

    @abstractmethod
    def gather_weights(self, trained: Mapping[str, Training]) -> None:
        """Bring the weights of all SAEs to the first rank, after the last step."""

    def begin(self, trained: Mapping[str, Training], stream: ActivationStream, start: int) -> int:
        """Bring all ranks to the state of the first, after step `start`. Returns that step."""
        ranks = self.ranks
        if ranks.size == 1:
            return start
        self.take_up(trained)
        told: list[Any] = ranks.from_first(lambda: [start, stream.state()])
        start, place = told
        if not ranks.first:
            stream.restore(place)
        return start

    def save(self, step: int, trained: Mapping[str, Training], logs: Mapping[str, Log], write: Write) -> None:
        """Let the first rank `write` the state after step `step`, with all logs. Raises what `Team.write` does."""
        self.gather_logs(logs)
        self.write(step, trained, write)


class WholeTeam(Team):
    """Ranks that share the rows of every batch in what is costly (`kernels.sharing`), and do all else alike.

    So they have the same weights, counters and forest at every step, bit for bit those of a single process.
    """

    has_all = True

    def __init__(self, ranks: Ranks = ALONE, division: Division | None = None) -> None:
        super().__init__(ranks, division)

    def own(self, names: list[str]) -> list[str]:
        return names

    def sharing(self) -> AbstractContextManager[None]:
        return sharing(self.ranks)

    def log(self, name: str) -> Log:
        return MemoryLog()

    def take_up(self, trained: Mapping[str, Training]) -> None:
        share_all(trained, self.ranks)

    def gather_logs(self, logs: Mapping[str, Log]) -> None:
        pass  # the first rank has logged all there is

    def write(self, step: int, trained: Mapping[str, Training], write: Write) -> None:
        check_same(trained, step, self.ranks)
        first_writes(self.ranks, step, write)

    def gather_weights(self, trained: Mapping[str, Training]) -> None:
        pass


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

    def take_up(self, trained: Mapping[str, Training]) -> None:
        for name, rank in self._of_others().items():
            if self.ranks.first:
                self.ranks.send(tensors_of(trained[name]), rank)
            elif rank == self.ranks.rank:
                restore(trained[name], self.ranks.receive(0))
        self._drop_optimizers(trained)

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

    def write(self, step: int, trained: Mapping[str, Training], write: Write) -> None:
        for name, rank in self._of_others().items():
            if self.ranks.first:
                restore(trained[name], self.ranks.receive(rank))
            elif rank == self.ranks.rank:
                self.ranks.send(tensors_of(trained[name]), 0)
        try:
            first_writes(self.ranks, step, write)
        finally:
            self._drop_optimizers(trained)

    def gather_weights(self, trained: Mapping[str, Training]) -> None:
        pass  # `write` has brought them up to date in the last step

    def _drop_optimizers(self, trained: Mapping[str, Training]) -> None:
        """On the first rank: the optimizer's state of a copy is twice its weights, and only a checkpoint needs it."""
        for name in self._of_others():
            if self.ranks.first:
                trained[name].optimizer.state.clear()

    def _of_others(self) -> dict[str, int]:
        return {name: rank for name, rank in self.owner.items() if rank}


def share_all(trained: Mapping[str, Training], ranks: Ranks) -> None:
    """Give all ranks the trainings of the first."""
    for training in trained.values():
        shared = ranks.share(tensors_of(training) if ranks.first else None)
        if not ranks.first:
            restore(training, shared)


def first_writes(ranks: Ranks, step: int, write: Write) -> None:
    """Let the first rank write the tensors that it has, while the others wait. Raises OSError there if it cannot."""
    errors: list[OSError] = []

    def tried() -> None:
        try:
            write(step, None)
        except OSError as error:  # the others must hear that they need not wait any longer
            errors.append(error)

    ranks.from_first(tried)
    for error in errors:
        raise error


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
        return WholeTeam(ranks, division)
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
    return WholeTeam(ranks, division)


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
