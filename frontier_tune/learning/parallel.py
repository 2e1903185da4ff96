"""Data-parallel learners: each computes a share of the batch, gradients are added up, and every one takes the same update.

Losses are divided by totals of the whole batch before they are added (algorithms/base.py), so a sum over ranks is the sum over
micro-batches that one learner would take; only the order of the additions differs. Every rank gets all episodes: advantages need
whole groups, and cost nothing beside a forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from frontier_tune.contracts import BadInput
from frontier_tune.learning import packing

_LOOPBACK = "frontier_tune_loopback"  # gloo, by a name of its own in torch's registry of backends


def _gloo(store: dist.Store, rank: int, size: int, timeout: timedelta, address: str = "127.0.0.1") -> Any:
    options = dist.ProcessGroupGloo._Options()
    options._timeout = timeout
    # Loopback by name, or the cluster's address: gloo would look the host's name up, and listen where others can reach it.
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    return dist.ProcessGroupGloo(store, rank, size, options)


@dataclass(frozen=True)
class World:
    """One rank of ``size``. Every method but ``share`` is a collective: all ranks call it, in the same order.

    ``mesh``: the same ranks as FSDP2 takes them, where the base is split over them; else None.
    """

    rank: int
    size: int
    device: torch.device
    _group: Any
    mesh: DeviceMesh | None = None

    @classmethod
    def join(
        cls,
        rank: int,
        size: int,
        rendezvous: str | Path | dist.Store,
        device: torch.device,
        timeout_s: float = 600.0,
        sharded: bool = False,
        address: str = "127.0.0.1",
    ) -> World:
        """Meet the other ranks of this machine by a file that none of them has made before: nccl for GPUs, gloo for CPUs.

        Those of other machines meet by a store that all can reach; ``address`` is then this machine's own, where gloo listens.
        Blocks until all have come. A rank that dies or hangs makes the others raise within ``timeout_s`` seconds of waiting.
        With ``sharded`` there is a ``mesh``, whose ranks torch wants to be the process's own: one such world a process.
        """
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} of {size}")
        store = rendezvous if isinstance(rendezvous, dist.Store) else dist.FileStore(str(rendezvous), size)
        timeout = timedelta(seconds=timeout_s)
        if device.type == "cuda":
            if not dist.is_nccl_available():
                raise BadInput("placement.learners: this torch has no nccl, which learners on GPUs need; set it to 1")
            torch.cuda.set_device(device)
        if sharded:
            if device.type == "cpu":
                dist.Backend.register_backend(_LOOPBACK, partial(_gloo, address=address), devices=["cpu"])
            backend = "nccl" if device.type == "cuda" else _LOOPBACK
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
            group = dist.group.WORLD
            return cls(rank, size, device, group, DeviceMesh.from_group(group, device.type))
        if device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timeout
            return cls(rank, size, device, dist.ProcessGroupNCCL(store, rank, size, options))
        return cls(rank, size, device, _gloo(store, rank, size, timeout, address))

    def share(self, keys: Sequence[Sequence[int]], groups: Sequence[int] | None) -> list[int]:
        """Indexes of this rank's sequences: whole groups where prefixes are shared, by number of rows as even as they come.

        The largest group goes to the rank with the least so far (LPT; Graham, 1969: at most a third above the best). Where there
        are fewer groups than ranks, they are split. Equal on all ranks for equal input.
        """
        units = packing.units(keys, groups)
        if len(units) < self.size:
            units = [[i] for i in range(len(keys))]
        rows = []
        for unit in units:
            prefix = packing.common_prefix([keys[i] for i in unit]) if len(unit) > 1 else 0
            rows.append(prefix + sum(len(keys[i]) - prefix for i in unit))
        loads, mine = [0] * self.size, []
        for n in sorted(range(len(units)), key=lambda n: (-rows[n], n)):
            rank = loads.index(min(loads))
            loads[rank] += rows[n]
            if rank == self.rank:
                mine += units[n]
        return sorted(mine)

    def _add(self, flat: Tensor) -> Tensor:
        self._group.allreduce([flat]).wait()
        return flat

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients over all ranks, in one flat buffer; a parameter that no rank has one for keeps none."""
        every = list(parameters)
        there = torch.tensor([float(p.grad is not None) for p in every], device=self.device)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in every]
        *sums, anywhere = self._add(torch.cat([*(g.reshape(-1) for g in parts), there])).split(
            [*(p.numel() for p in every), len(every)]
        )
        for p, total, has in zip(every, sums, anywhere.tolist(), strict=True):
            p.grad = total.view_as(p) if has else None

    def most(self, count: int) -> int:
        """The largest of all ranks' counts."""
        every = np.zeros(self.size, np.int32)
        every[self.rank] = count
        arrays = [every]
        self.add_arrays(arrays)
        return int(arrays[0].max())

    def add_numbers(self, values: Sequence[float]) -> list[float]:
        """Each number's sum over all ranks, in float64."""
        out: list[float] = self._add(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()
        return out

    def add_arrays(self, arrays: list[np.ndarray]) -> None:
        """In place, each array's sum over all ranks: where each rank has filled its own and left zeros, all of them."""
        if not arrays:
            return
        kind, dtype = arrays[0].dtype, np.float64 if arrays[0].dtype.kind == "f" else np.int32
        flat = torch.from_numpy(np.concatenate([a.reshape(-1) for a in arrays]).astype(dtype)).to(self.device)
        parts = np.split(self._add(flat).cpu().numpy(), np.cumsum([a.size for a in arrays])[:-1])
        for n, (a, part) in enumerate(zip(arrays, parts, strict=True)):
            arrays[n] = part.reshape(a.shape).astype(kind)
