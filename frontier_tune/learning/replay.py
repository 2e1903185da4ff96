"""Routing replay in the learner: which routes a batch is trained with, and how far they are from the learner's own.

``algorithm.replay: sampler`` (R3, arXiv:2510.11370) takes the routes that the sampler chose; ``learner`` (R2, arXiv:2512.01374,
section 3.3) those that the learner itself chooses at the start of a step, for all updates of that step; ``none`` forces nothing
and, where trajectories bring routes, measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from frontier_tune.algorithms import kl
from frontier_tune.experts.routing.replay import Replay, code_dtype
from frontier_tune.learning.batch import Batch, Sample
from frontier_tune.learning.parallel import World

Mode = Literal["none", "learner", "sampler"]
_TALLIES = 5  # tokens, flipped ones, KL of both kinds, routes that differ


class Replayer:
    """Decides for each sample what is forced, watches the routers, and tallies flips against the sampler's routes."""

    def __init__(self, mode: Mode, replay: Replay) -> None:
        self.mode, self.replay = mode, replay
        self.tally = torch.zeros(_TALLIES, dtype=torch.float64)

    @property
    def shape(self) -> tuple[int, int]:
        """(L, K) of routes."""
        return len(self.replay.layers), self.replay.top_k

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        return code_dtype(self.replay.experts)

    def check(self, members: Sequence[Sample]) -> None:
        """Raise ValueError where a sample's routes don't fit the model, or are missing where they are to be replayed."""
        for s in members:
            where = f"group {s.group}, a sequence of {len(s.tokens)} tokens"
            if s.routes is not None:
                self.replay.check(s.routes, int(s.target[-1]), where)
            elif self.mode == "sampler":
                raise ValueError(f"{where}: no routes to replay; its sampler must keep them (sampler.routes: true)")

    def forced(self, sample: Sample) -> np.ndarray | None:
        """[n, L, K] for its first n tokens; None where it routes as it likes."""
        return {"none": None, "learner": sample.old_routes, "sampler": sample.routes}[self.mode]

    def keys(self, members: Sequence[Sample]) -> list[list[int]]:
        """By what prefixes are compared: numbers that are equal where token and forced route are."""
        forced = [self.forced(s) for s in members]
        if all(f is None for f in forced):
            return [s.tokens for s in members]
        width = 8 + 1 + 2 * len(self.replay.layers) * self.replay.top_k
        rows = np.zeros((sum(len(s.tokens) for s in members), width), np.uint8)
        at = 0
        for s, routes in zip(members, forced, strict=True):
            part = rows[at : at + len(s.tokens)]
            part[:, :8] = np.asarray(s.tokens, np.int64)[:, None].view(np.uint8)
            if routes is not None:
                n = min(len(routes), len(s.tokens))
                part[:n, 8] = 1
                part[:n, 9:] = np.ascontiguousarray(routes[:n], np.uint16).reshape(n, -1).view(np.uint8)
            at += len(s.tokens)
        _, number = np.unique(rows.view(f"V{width}")[:, 0], return_inverse=True)
        ends = np.cumsum([len(s.tokens) for s in members])
        return [part.tolist() for part in np.split(number.reshape(-1), ends[:-1])]

    @contextmanager
    def watching(self, b: Batch) -> Iterator[Tensor]:
        """While inside, the policy runs on the batch's routes; gives the routers' own choice, [T, L, K]."""
        with self.replay.watching(len(b.packed.tokens_T), b.rows_M.device, b.forced_TLK, b.known_T) as own_TLK:
            yield own_TLK

    def record(self, own_TLK: Tensor, b: Batch) -> list[np.ndarray]:
        """The routers' own choice by sequence, for a later replay."""
        own = own_TLK.cpu().numpy().astype(self.dtype)
        return [own[rows] for rows in b.packed.rows]

    @torch.no_grad()
    def count(self, own_TLK: Tensor, b: Batch, logprob_M: Tensor) -> None:
        """Add a batch to the tallies, where its samples bring the sampler's routes."""
        if b.route_MLK is None:
            return
        own, theirs = (x.sort(dim=-1).values for x in (own_TLK[b.rows_M], b.route_MLK))
        differs_ML = (own != theirs).any(-1)
        flipped_M = differs_ML.any(-1)
        kl_M = kl.k3(b.sampler_logprob_M, logprob_M).double()
        numbers = (flipped_M.numel(), flipped_M.sum(), kl_M[flipped_M].sum(), kl_M[~flipped_M].sum(), differs_ML.sum())
        self.tally += torch.tensor([float(n) for n in numbers], dtype=torch.float64)

    def metrics(self, world: World | None) -> dict[str, float]:
        """Of what was counted, by all ranks, and is forgotten now: see ``Learner.update``."""
        tally = self.tally.tolist()
        tokens, flipped, kl_flipped, kl_kept, differing = tally if world is None else world.add_numbers(tally)
        self.tally.zero_()
        if not tokens:
            return {}
        out: dict[str, Any] = {
            "route_flips": flipped / tokens,
            "route_flips_layer": differing / (tokens * len(self.replay.layers)),
        }
        if flipped:
            out["kl_sampler_flipped"] = kl_flipped / flipped
        if flipped < tokens:
            out["kl_sampler_kept"] = kl_kept / (tokens - flipped)
        return out
