"""What a run knows of its processes, and the case of a single one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")


class Ranks:
    """The processes of one run. This class is the single process of an ordinary run.

    All ranks must call the same methods in the same order, except where a method says otherwise.
    """

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""

    @property
    def first(self) -> bool:
        """Whether this process is the first: the one that claims folders, writes files and prints."""
        return self.rank == 0

    def own(self, n: int) -> slice:
        """The share of this rank in `n` rows: consecutive ones, in the order of ranks."""
        return share(n, self.rank, self.size)

    def gather(self, own: Tensor, *, lengths: Sequence[int] | None = None) -> Tensor:
        """The rows of all ranks, in the order of ranks, on every rank.

        own: `[n, ...]` rows of this rank. Ranks may have different numbers of rows.
        lengths: the number of rows of each rank, if all ranks know them.
        """
        return own

    def gather_rows(self, own: Tensor, n: int) -> Tensor:
        """The same for the rows `own(n)` of `n`."""
        return own

    def sum(self, own: Tensor) -> Tensor:
        """The sum of the tensors of all ranks, on every rank; exact where all but one have zeros."""
        return own

    def trade(self, parts: Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
        """Send `parts[r]` to each rank r. Returns what each rank sent to this one, which has the shape `shapes[r]`."""
        return list(parts)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make()` returns on the first rank, on every rank: plain JSON values. The others wait, however long."""
        return make()

    def agree(self, stop: bool, due: bool) -> tuple[bool, bool]:
        """Whether any rank is asked to stop, and whether something is due by the first rank's clock, for all ranks."""
        return stop, due

    def to_first(self, value: Any) -> list[Any]:
        """On the first rank the values of the others, plain JSON values, in order; on the others nothing."""
        return []

    def send(self, tensors: dict[str, Tensor], to: int) -> None:
        """Send tensors on the CPU to another rank, which must call `receive`. The others do nothing."""
        raise NotImplementedError("a single process has nobody to send to")

    def receive(self, source: int) -> dict[str, Tensor]:
        """The tensors that another rank sends."""
        raise NotImplementedError("a single process has nobody to receive from")

    def share(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The tensors of the first rank, on every rank."""
        assert tensors is not None
        return tensors

    def mesh(self, shards: int) -> tuple[Ranks, Ranks]:
        """The ranks as a table with `shards` columns: those in this rank's column, and those in its row."""
        return self, self

    def rescue(self, save: Callable[[], Any]) -> AbstractContextManager[None]:
        """Inside the `with` block, `save()` is called when another rank is lost, before the process ends."""
        return nullcontext()


def share(n: int, rank: int, size: int) -> slice:
    """The rows of a rank: `n` divided as evenly as possible."""
    each, more = divmod(n, size)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))


#: The single process of an ordinary run.
ALONE = Ranks()


class Scope:
    """The ranks that share some kind of work inside a `with` block; outside it, this process is alone.

    Each thread has its own, so code that a block starts in another thread works alone.
    """

    def __init__(self, name: str) -> None:
        self._ranks = ContextVar[Ranks](name, default=ALONE)

    @property
    def ranks(self) -> Ranks:
        """The ranks that share the work here."""
        return self._ranks.get()

    @contextmanager
    def of(self, ranks: Ranks) -> Iterator[None]:
        """Inside the `with` block, these ranks share the work."""
        token = self._ranks.set(ranks)
        try:
            yield
        finally:
            self._ranks.reset(token)
