"""Which policy versions the engine can serve: an immutable adapter directory, a name and an id of its own for each."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from frontier_tune.contracts import BadInput
from frontier_tune.experts import canonical, resident

BASE = 0


@dataclass
class Version:
    """One policy. ``path`` is None for the base alone; ``open`` counts requests that still run on it.

    ``routers``: those that it brings, [E, H] by decoder layer.
    """

    number: int
    id: int
    path: Path | None
    peft: dict[str, Any] = field(default_factory=dict)
    open: int = 0
    routers: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"policy-{self.number}-{self.id}"


class Versions:
    """The versions that may be asked for. Not thread-safe: the engine's thread owns it.

    A version lives until it is not current, not kept and none of its requests is open; an adapter that vLLM has evicted
    meanwhile is read again from its path, so the path must not change before.
    """

    def __init__(self, spool: Path, config: Any, rank: int) -> None:
        self.spool, self.config, self.rank = spool, config, rank
        self._ids = itertools.count(1)
        self._seen = {BASE}
        self._live = {BASE: Version(BASE, 0, None)}
        self._kept: set[int] = {BASE}
        self.current = self._live[BASE]

    def get(self, number: int) -> Version:
        if number not in self._live:
            raise BadInput(f"policy version {number} isn't in the sampler; there are: {sorted(self._live)}")
        return self._live[number]

    def add(self, adapter_dir: str | Path, number: int, dtype: torch.dtype) -> Version:
        """Verify an adapter against the base and copy it, in vLLM's names, to a directory of its own."""
        self.require_new(number)
        peft = canonical.read_config(adapter_dir)
        if int(peft["r"]) > self.rank:
            raise BadInput(f"{adapter_dir}: rank {peft['r']}, the sampler was built for rank {self.rank} (adapter.rank)")
        tensors = canonical.load(adapter_dir, self.config, dtype)
        ident = next(self._ids)
        path = resident.write_for_vllm(adapter_dir, self.spool / f"{number}-{ident}", self.config)
        named = {i: canonical.router_name(i) for i in range(int(self.config.num_hidden_layers))}
        return Version(number, ident, path, peft, routers={i: tensors[n] for i, n in named.items() if n in tensors})

    def replace(self, number: int) -> None:
        """The engine's only model is another one from now on: version ``number``, and there are no others."""
        self._seen.add(number)
        self.current = Version(number, next(self._ids), None)
        self._live, self._kept = {number: self.current}, set()

    def require_new(self, number: int) -> None:
        """Raises BadInput for a version that was there before."""
        if number in self._seen:
            raise BadInput(f"policy version {number} was synced before; a version is never reused (0 is the base)")

    def admit(self, version: Version, activate: bool) -> list[Version]:
        """Make a loaded version available, and current if ``activate``. Returns the versions that may be dropped now."""
        self._seen.add(version.number)
        self._live[version.number] = version
        if activate:
            self.current = version
        else:
            self._kept.add(version.number)
        return self.stale()

    def release(self, number: int) -> list[Version]:
        self._kept.discard(number)
        self._kept.add(BASE)
        return self.stale()

    def stale(self) -> list[Version]:
        """Take out the versions that nothing needs any more."""
        gone = [v for v in self._live.values() if v is not self.current and v.number not in self._kept and not v.open]
        for v in gone:
            del self._live[v.number]
        return gone

    @staticmethod
    def forget(version: Version) -> None:
        if version.path is not None:
            shutil.rmtree(version.path, ignore_errors=True)
