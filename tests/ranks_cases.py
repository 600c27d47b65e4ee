"""Worlds of a few processes, as torchrun starts them, but forked from one that has imported everything already."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import Any, NamedTuple


class Ended(NamedTuple):
    """How the processes of a world ended, by rank."""

    codes: list[int]
    """Exit statuses; minus the signal that ended a process."""
    out: list[str]
    err: list[str]

    @property
    def errors(self) -> list[str]:
        """The lines with an error that all of them wrote."""
        return [line for line in "".join(self.err).splitlines() if "rror" in line]


@dataclass
class World:
    """Running processes."""

    pids: list[int]
    folder: Path
    _server: subprocess.Popen[str]

    def kill(self, rank: int, signum: int = signal.SIGKILL) -> None:
        os.kill(self.pids[rank], signum)

    def wait(self, seconds: float = 120) -> Ended:
        """How they ended. Fails if they hang: they are to end in half a minute, on a machine that is not busy."""
        assert self._server.stdout is not None
        if not select([self._server.stdout], [], [], seconds)[0]:
            for pid in self.pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._server.stdout.readline()
            raise AssertionError(f"the ranks still run after {seconds} s")
        codes = json.loads(self._server.stdout.readline())
        out, err = (
            [(self.folder / f"{rank}.{name}").read_text() for rank in range(len(codes))]
            for name in ("out", "err")
        )
        return Ended(codes, out, err)


class Worlds:
    """Starts worlds, one after another."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def start(self, size: int, *argv: str, machines: Machines | None = None, **acts: int | None) -> World:
        """Start `size` processes that run the command line `argv`, on this machine or one on each of others.

        acts: what the last of them does: `stop_at`, a training step in which it is asked to stop; `killed_at`, a file
        of a checkpoint, counted from 1, in whose place it is killed. What the first one does: `stuck_reading`,
        `stuck_after_a_step`, `stuck_saving`, a number of the same from which it does not come back. For all: `patience`
        and `meet_s`, the seconds in which a rank must be heard of and come, instead of the usual ones.
        """
        folder = Path(tempfile.mkdtemp())
        job = {"size": size, "argv": argv, "folder": str(folder), "machines": machines and machines.names}
        job |= {"acts": acts}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return World(json.loads(self._server.stdout.readline()), folder, self._server)

    def run(self, size: int, *argv: str, **acts: int | None) -> Ended:
        """How they ended, when nobody disturbs them."""
        return self.start(size, *argv, machines=None, **acts).wait(600)


class Machines(NamedTuple):
    """Network namespaces, each with an address of its own on a cable between them."""

    names: list[str]

    def cut_off(self, which: int) -> None:
        _ip("-n", self.names[which], "link", "set", "cable", "down")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def machines() -> Iterator[Machines]:
    """Two machines. Raises CalledProcessError or OSError where namespaces cannot be made."""
    names = [f"saeforest-{os.getpid()}-{i}" for i in range(2)]
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "cable", "netns", names[1])
        for i, name in enumerate(names):
            _ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
        yield Machines(names)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _move_to(machine: str) -> None:
    """Enter a network namespace."""
    handle = os.open(f"/run/netns/{machine}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(handle, 0):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def worlds() -> Iterator[Worlds]:
    """What starts worlds; it has imported PyTorch and saeforest, and computed nothing."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    here = str(Path(__file__).parent)
    env["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "ranks_cases"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    try:
        yield Worlds(server)
    finally:
        server.communicate()


def _stop_in(wanted: int) -> None:
    """From now on this process asks itself to stop in training step `wanted`."""
    from saeforest.saes import Training

    after_step = Training.after_step

    def stopping(self: Training, step: Any, number: int) -> Any:
        if number == wanted:
            signal.raise_signal(signal.SIGTERM)
        return after_step(self, step, number)

    Training.after_step = stopping


def _die_in(wanted: int) -> None:
    """From now on this process is killed when it writes file `wanted` of checkpoints, counted from 1."""
    from saeforest.training import checkpoint

    write, written = checkpoint.write_tensors, []

    def dying(path: Path, tensors: Any) -> str:
        written.append(path)
        if len(written) == wanted:
            path.write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, tensors)

    checkpoint.write_tensors = dying


def _stick(owner: Any, name: str, wanted: int) -> None:
    """From now on call `wanted` of a function, counted from 1, never returns."""
    function, calls = getattr(owner, name), []

    def stuck(*arguments: Any, **named: Any) -> Any:
        calls.append(None)
        if len(calls) == wanted:
            while True:
                time.sleep(60)
        return function(*arguments, **named)

    setattr(owner, name, stuck)


def _act(rank: int, size: int, acts: dict[str, int]) -> None:
    """Let this process do what `Worlds.start` describes."""
    from saeforest.activations import ActivationStream
    from saeforest.ranks import join, monitor
    from saeforest.saes import Training
    from saeforest.training import loop

    if patience := acts.get("patience"):
        os.environ[monitor.PATIENCE] = str(patience)
        monitor._LATEST_S = monitor._SAVE_S = 3.0
    join._MEET_S = float(acts.get("meet_s", join._MEET_S))
    if rank == size - 1:
        for name, act in (("stop_at", _stop_in), ("killed_at", _die_in)):
            if number := acts.get(name):
                act(number)
    if rank == 0:
        for name, owner, function in (
            ("stuck_reading", ActivationStream, "next"),
            ("stuck_after_a_step", Training, "after_step"),
            ("stuck_saving", loop, "save_checkpoint"),
        ):
            if number := acts.get(name):
                _stick(owner, function, number)


def _rank(rank: int, job: dict[str, Any], port: int) -> None:
    """What a forked process does. It does not return."""
    folder = Path(job["folder"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["size"])}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if job["machines"]:
        _move_to(job["machines"][rank])
        os.environ |= {"MASTER_ADDR": "10.77.0.1", "GLOO_SOCKET_IFNAME": "cable", "LOCAL_RANK": "0"}
        os.environ |= {"SAEFOREST_RANKS_PATIENCE": "8"}
    else:
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    from saeforest.cli import main

    _act(rank, job["size"], job["acts"])
    sys.argv = ["saeforest", *job["argv"]]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    import saeforest.cli.eval
    import saeforest.cli.train
    import saeforest.evaluation
    import saeforest.ranks.processes
    import saeforest.training.sharded  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        # The store has a thread, and a process forked beside it can find a lock taken that nobody opens again. So all
        # are forked before the store is there, and hear of its port by a pipe.
        read, write = os.pipe()
        pids = []
        for rank in range(job["size"]):
            if (pid := os.fork()) == 0:
                os.close(write)
                _rank(rank, job, int.from_bytes(os.read(read, 4), "big"))
            pids.append(pid)
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(write, b"".join(store.port.to_bytes(4, "big") for _ in pids))
        os.close(read)
        os.close(write)
        print(json.dumps(pids), flush=True)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(codes), flush=True)
        del store


if __name__ == "__main__":
    _serve()
