"""Several processes, which exchange tensors by torch.distributed, and small values by its store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from .alone import Ranks, share
from .monitor import Monitor

T = TypeVar("T")
_DTYPES = {str(dtype): dtype for dtype in (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool,
)}  # fmt: skip
# Its name since torch 2.13, where the old one warns.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Processes(Ranks):
    """The ranks of a process group. Tensors are exchanged as bytes, so nothing is rounded and any data type will do."""

    def __init__(self, monitor: Monitor, store: Any, group: Any = None) -> None:
        """store: where small values are exchanged; a client of its own, since waiting blocks it.

        group: some of the ranks, which exchange tensors among themselves. None: all.
        """
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._monitor, self._store, self._group = monitor, store, group
        self._told = self._posted = 0
        self._messages: dict[tuple[int, int], int] = {}

    def gather(self, own: Tensor, *, lengths: Sequence[int] | None = None) -> Tensor:
        if lengths is None:
            found = self._gather(torch.tensor([len(own)], device=own.device), [1] * self.size)
            lengths = found.tolist()
        return self._gather(own, lengths)

    def gather_rows(self, own: Tensor, n: int) -> Tensor:
        rows = (share(n, rank, self.size) for rank in range(self.size))
        return self._gather(own, [part.stop - part.start for part in rows])

    def _gather(self, own: Tensor, lengths: Sequence[int]) -> Tensor:
        most = max(lengths)
        row = own.shape[1:].numel() * own.element_size()
        if most * row == 0:
            return own.new_empty(sum(lengths), *own.shape[1:])
        sent = own.contiguous().view(-1).view(torch.uint8)
        if len(own) < most:
            sent = torch.cat([sent, sent.new_zeros((most - len(own)) * row)])
        every = sent.new_empty(self.size * most * row)
        with self._monitor.waiting():
            _all_gather(every, sent, group=self._group)
        if min(lengths) < most:
            parts = zip(every.split(most * row), lengths, strict=True)
            every = torch.cat([part[: n * row] for part, n in parts])
        return every.view(own.dtype).view(sum(lengths), *own.shape[1:])

    def sum(self, own: Tensor) -> Tensor:
        total = own.clone()
        if total.numel() == 0:
            return total
        with self._monitor.waiting():
            dist.all_reduce(total, group=self._group)
        return total

    def trade(self, parts: Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
        sent = [part.contiguous().view(-1).view(torch.uint8) for part in parts]
        lengths = [shape.numel() * parts[0].element_size() for shape in shapes]
        found = sent[0].new_empty(sum(lengths))
        with self._monitor.waiting():
            dist.all_to_all_single(found, torch.cat(sent), lengths, [len(x) for x in sent], group=self._group)
        received = zip(found.split(lengths), shapes, strict=True)
        return [x.view(parts[0].dtype).view(shape) for x, shape in received]

    def from_first(self, make: Callable[[], T]) -> T:
        self._told += 1
        key = f"told/{self._told}"
        if self.first:
            value = make()
            self._put(key, value)
            return value
        return json.loads(self._monitor.wait_for(self._store, key))

    def to_first(self, value: Any) -> list[Any]:
        self._posted += 1
        if not self.first:
            self._put(f"posted/{self.rank}/{self._posted}", value)
            return []
        keys = [f"posted/{rank}/{self._posted}" for rank in range(1, self.size)]
        found = [json.loads(self._monitor.wait_for(self._store, key)) for key in keys]
        self._drop(keys)
        return found

    def _put(self, key: str, value: Any) -> None:
        with self._monitor.waiting():
            self._store.set(key, json.dumps(value))

    def _drop(self, keys: Sequence[str]) -> None:
        with self._monitor.waiting():
            for key in keys:
                self._store.delete_key(key)

    def agree(self, stop: bool, due: bool) -> tuple[bool, bool]:
        every = self._gather(torch.tensor([[stop, due]]), [1] * self.size)
        return bool(every[:, 0].any()), bool(every[0, 1])

    def send(self, tensors: dict[str, Tensor], to: int) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        about = [[name, str(x.dtype).removeprefix("torch."), list(x.shape)] for name, x in tensors.items()]
        self._put(self._message(self.rank, to), about)
        with self._monitor.waiting():
            for tensor in tensors.values():
                if tensor.numel():
                    dist.send(tensor.view(-1).view(torch.uint8), to)

    def receive(self, source: int) -> dict[str, Tensor]:
        key = self._message(source, self.rank)
        about = json.loads(self._monitor.wait_for(self._store, key))
        self._drop([key])
        return {name: self._received(source, dtype, shape) for name, dtype, shape in about}

    def _message(self, source: int, to: int) -> str:
        """The key of the next message: the sender may be ahead of the receiver."""
        number = self._messages[source, to] = self._messages.get((source, to), 0) + 1
        return f"sent/{source}/{to}/{number}"

    def _received(self, source: int, dtype: str, shape: list[int]) -> Tensor:
        tensor = torch.empty(shape, dtype=_DTYPES[f"torch.{dtype}"])
        if tensor.numel():
            with self._monitor.waiting():
                dist.recv(tensor.view(-1).view(torch.uint8), source)
        return tensor

    def share(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        if tensors is not None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        about = self.from_first(
            lambda: [[n, str(x.dtype), list(x.shape)] for n, x in (tensors or {}).items()]
        )
        found = {}
        for name, dtype, shape in about:
            tensor = torch.empty(shape, dtype=_DTYPES[dtype]) if tensors is None else tensors[name]
            if tensor.numel():
                with self._monitor.waiting():
                    dist.broadcast(tensor.view(-1).view(torch.uint8), 0)
            found[name] = tensor
        return found

    def mesh(self, shards: int) -> tuple[Ranks, Ranks]:
        shape, names = (self.size // shards, shards), ("data", "features")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with self._monitor.waiting():
            mesh = init_device_mesh(device, shape, mesh_dim_names=names)
        data, features = (Processes(self._monitor, self._store, mesh[name].get_group()) for name in names)
        return data, features

    @contextmanager
    def rescue(self, save: Callable[[], Any]) -> Iterator[None]:
        self._monitor.save = save
        try:
            yield
        finally:
            self._monitor.save = None
