"""How a process joins the others that torchrun started with it, and leaves them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

from .. import output
from ..errors import InputError
from ..stopping import Interrupted
from .alone import ALONE, Ranks
from .monitor import Monitor, Over

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Exchanges of tensors are between ranks that are in the same step. The monitor finds a lost rank much earlier; this
# ends ranks that wait for each other by a mistake of ours.
_STUCK = timedelta(minutes=30)
# How long a rank waits for those that start later.
_MEET_S = 600.0
# How long the process that holds the store waits for the others to end.
_OTHERS_LEAVE_S, _OTHERS_LOST_S = 60, 3

_here: Ranks = ALONE


def here() -> Ranks:
    """The ranks that this process has joined; `ALONE` outside `joined`."""
    return _here


@contextmanager
def joined() -> Iterator[Ranks]:
    """Inside the `with` block, this process is one of those that torchrun started: of as many as WORLD_SIZE says.

    An error that leaves the block ends all ranks. All but the first are silent.

    Raises InputError if the environment is incomplete, or if the other ranks do not come.
    """
    global _here
    if int(os.environ.get("WORLD_SIZE", "1") or 1) == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    place = _place()
    monitor, stores, hosts = _enter(place)
    try:
        _here = _meet(monitor, stores, place)
        yield _here
    except BaseException as error:
        reason = error
        # Where a rank has died, the launcher sends SIGTERM to all others.
        if isinstance(error, Interrupted) and error.signum == signal.SIGTERM and monitor.lost_soon():
            try:
                monitor.end()
            except (InputError, SystemExit) as lost:
                reason = lost
        if reason is error:
            monitor.leave(*_told(error, place))
            raise
        monitor.leave(*_told(reason, place))
        raise reason from None
    else:
        monitor.leave()
    finally:
        _here = ALONE
        if hosts:  # the store ends with this process
            monitor.others_left(_OTHERS_LOST_S if monitor.over else _OTHERS_LEAVE_S)


def _told(error: BaseException, place: _Place) -> tuple[str, int]:
    """What the others are told of an error: a line, and the status with which they end."""
    where = f"rank {place.rank} of {place.size}: " if place.rank else ""
    match error:
        case Interrupted():
            return f"{where}{error or 'stopped'}", 128 + error.signum
        case Over():
            return "", 0
        case SystemExit():
            return f"{where}ended", int(error.code or 0) if not isinstance(error.code, str) else 1
        case InputError():
            return f"{where}{error}", 2
        case _:
            return f"{where}{type(error).__name__}: {' '.join(str(error).split())[:500]}", 1


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise InputError(f"{name}={value!r}: expected a number, as torchrun sets it; start with torchrun")
    return int(value)


class _Place(NamedTuple):
    """What the launcher says of this process, and where all of them meet."""

    rank: int
    size: int
    host: str
    port: int


def _place() -> _Place:
    if missing := [name for name in _NAMES if name not in os.environ]:
        raise InputError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but {missing[0]} is not set; start with torchrun, or unset "
            "WORLD_SIZE"
        )
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    if not rank < size:
        raise InputError(f"RANK={rank}: expected 0 to {size - 1}, as WORLD_SIZE={size}; start with torchrun")
    return _Place(rank, size, os.environ["MASTER_ADDR"], _number("MASTER_PORT"))


def _enter(place: _Place) -> tuple[Monitor, list[Any], bool]:
    """Come to where all ranks meet. Returns two clients of the store there, and whether this process holds it."""
    if place.rank:
        output.silence()
    _take_device()
    # PyTorch would print pages about every connection that breaks. We say which rank is gone, in one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    hosts = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"

    def client(*, master: bool = False) -> Any:
        timeout = timedelta(seconds=_MEET_S)
        store = TCPStore(place.host, place.port, is_master=master, timeout=timeout, wait_for_workers=False)
        run = os.environ.get("TORCHELASTIC_RUN_ID", "") + os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
        return PrefixStore(f"saeforest/{run}", store)

    with _reached(place):
        stores = [client(master=hosts), client(), client()]
        return Monitor(stores[1], place.rank, place.size), [stores[0], stores[2]], hosts


def _meet(monitor: Monitor, stores: list[Any], place: _Place) -> Ranks:
    """Wait for the others, and connect with them."""
    import torch
    import torch.distributed as dist

    from .processes import Processes

    with _reached(place):
        monitor.meet(_MEET_S)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with monitor.waiting():
            dist.init_process_group(
                backend, store=stores[0], rank=place.rank, world_size=place.size, timeout=_STUCK
            )
    return Processes(monitor, stores[1])


@contextmanager
def _reached(place: _Place) -> Iterator[None]:
    """Raises InputError where the `with` block finds that the meeting point cannot be reached."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # nobody else may speak for this machine
            output.silence(False)
        raise InputError(
            f"MASTER_ADDR={place.host}, MASTER_PORT={place.port}: the other ranks cannot be reached "
            f"({' '.join(str(error).split())[:200]}); check that all machines were started and reach each other"
        ) from None


def _take_device() -> None:
    """See one GPU only, that of this rank on its machine, so that `cuda` is another one for each."""
    local = os.environ.get("LOCAL_RANK", "")
    if local.isdecimal() and (visible := os.environ.get("CUDA_VISIBLE_DEVICES", "all")):
        devices = visible.split(",")
        if visible == "all":
            os.environ["CUDA_VISIBLE_DEVICES"] = local
        elif int(local) < len(devices):
            os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(local)]
