"""The learner: turns trajectories and their advantages into a better adapter."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from frontier_tune import recipe as recipes
from frontier_tune.algorithms import kl, registry
from frontier_tune.algorithms.base import Sums
from frontier_tune.algorithms.batch import Tokens, Totals
from frontier_tune.contracts import Trajectory
from frontier_tune.experts import canonical
from frontier_tune.experts.routing.replay import Replay
from frontier_tune.learning import checkpoint, compiled, expert_usage
from frontier_tune.learning.batch import Batch, Sample, samples
from frontier_tune.learning.credit import credited
from frontier_tune.learning.critic import Critic
from frontier_tune.learning.full import FullPolicy
from frontier_tune.learning.guard import Guard, TrainingDiverged, Unmeasurable
from frontier_tune.learning.model import Policy
from frontier_tune.learning.packing import pack, plan
from frontier_tune.learning.parallel import World
from frontier_tune.learning.passes import Passes
from frontier_tune.learning.replay import Replayer
from frontier_tune.learning.schedule import learning_rate

__all__ = ["Learner", "TrainingDiverged"]

# Rows of the sample on which the KL to the base is measured when no loss term needs it everywhere.
_KL_SAMPLE_ROWS = 1024
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PHASES = ("pack", "forward", "backward", "optimizer")


def _added(a: Sums, b: Sums) -> Sums:
    return {name: a[name] + b[name] for name in a}


class Learner:
    """Holds base, adapter and optimizer; one ``update`` is one step of the run.

    ``version`` counts the updates that changed the adapter. The base is frozen; the adapter and its optimizer state are
    float32 whatever ``recipe.learner.dtype`` says of the base. With ``learner.trainable: all`` the policy is the base itself,
    all of whose weights learn (learning.full).
    """

    def __init__(self, base_dir: str | Path, recipe: recipes.Recipe, seed: int | None = None, world: World | None = None) -> None:
        """Load the base and start an adapter that changes nothing yet (B = 0). Raises BadInput where they don't fit.

        With a ``world`` this is one of several learners, which all get the same calls: each computes its share of a batch. Where
        its base is split over them that goes for ``score``, too.
        """
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        if torch.get_num_threads() != recipe.learner.threads:
            torch.set_num_threads(recipe.learner.threads)
        self.recipe = recipe
        self.algorithm = registry.build(recipe)
        self.coefficients = self.algorithm.start()
        self.seed = recipe.seed if seed is None else seed
        device = recipe.learner.device
        self.device = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        if world is not None:
            self.device = world.device
        mesh = world.mesh if world is not None else None
        dtype, checkpointing = _DTYPES[recipe.learner.dtype], recipe.learner.activation_checkpointing
        kind = FullPolicy if recipes.full.whole(recipe) else Policy
        self.policy = kind(base_dir, recipe.adapter, self.seed, dtype, self.device, mesh, checkpointing)
        self.optimizer = torch.optim.AdamW(
            self.policy.parameter_groups(recipe.learner),
            lr=recipe.learner.learning_rate,
            betas=recipe.learner.betas,
            weight_decay=recipe.learner.weight_decay,
        )
        self.critic: Critic | None = None
        if self.algorithm.has_critic:
            rate = getattr(self.algorithm, "critic_learning_rate", recipe.learner.learning_rate)
            self.critic = Critic(self.policy, rate, recipe.learner.max_grad_norm, self.seed, self.device)
        self.compiled = compiled.install(self.policy._backbone, mesh is not None) if recipe.learner.compile else None
        self.replayer: Replayer | None = None
        if recipe.algorithm.replay != "none" or recipe.sampler.routes:
            replay = Replay(self.policy.model, self.policy.config, self.policy.last_rows)
            self.replayer = Replayer(recipe.algorithm.replay, replay)
        self.world = world
        rows = recipe.learner.tokens_per_microbatch
        self.passes = Passes(self.policy, self.critic, self.replayer, world, rows, self.device)
        optimizers = [self.optimizer, *([self.critic.optimizer] if self.critic else [])]
        self.guard = Guard(optimizers, recipe.learner.rollbacks)
        self.generator = torch.Generator().manual_seed(self.seed)  # order of minibatches
        self.steps = self.learned = self.version = 0
        self.horizon = recipe.run.steps  # of the learning rate's schedule; a run that is made longer keeps its first one

    # ---- learning -------------------------------------------------------------------------------------------------

    def learn(self, batches: Sequence[Sequence[Trajectory]], done: int | None = None) -> dict[str, float]:
        """One step on what was played: each environment's episodes get the algorithm's advantages, then as ``update``.

        Rewards are compared within a batch alone. Give all episodes of a step: those that aren't trainable are left out here.
        ``done``: steps of the run before this one, those without anything to learn counted: the learning rate's schedule goes by
        them. None: those that were learned from.
        """
        if done is not None:
            self.steps = done
        return self._guarded(lambda: self._learn(batches))

    def _learn(self, batches: Sequence[Sequence[Trajectory]]) -> dict[str, float]:
        expert_usage.choose_once(self.policy, self.recipe.adapter.expert_mass, batches, self.score, self.world)
        everyone: list[Sample] = []
        penalties: list[tuple[float, int]] = []
        for trajectories in batches:
            part, penalty = credited(
                self.algorithm, trajectories, self.policy.config.vocab_size, self.coefficients.kl, self.passes.measure
            )
            everyone += part
            if penalty is not None:
                penalties.append(penalty)
        metrics = self._update(everyone)
        if penalties:
            metrics["kl_reward"] = sum(k * n for k, n in penalties) / sum(n for _, n in penalties)
            self.coefficients = self.algorithm.adapt(self.coefficients, metrics["kl_reward"], None)
            if self.algorithm.kl_target is not None:
                metrics["kl_coefficient"] = self.coefficients.kl  # as it stands after the step, like that of a KL in the loss
        return metrics

    def update(self, trajectories: Sequence[Trajectory], advantages: Sequence[float | Sequence[float]]) -> dict[str, float]:
        """One step: ``algorithm.epochs`` passes of ``algorithm.minibatches`` optimizer updates over the trajectories.

        An advantage is one number, or one for each sampled token. Trajectories that are not trainable, and their advantages, are
        left out. Where no loss term but the advantage is at work, those with advantage 0 contribute exactly nothing: they count
        in the normaliser and are not computed.

        Returns:
            metrics: ``loss``, ``grad_norm`` (before clipping), ``clip_share``, ``entropy`` (nats a token, of the tokens
            computed), ``surprisal`` (mean -log-probability of all sampled tokens), ``kl_old`` (k3, sampling policy to trained
            one), ``kl_sampler`` and ``logprob_gap`` (the same, and mean |learner - sampler|, before the first update),
            ``kl_base`` (k3, policy to base; of a sample of tokens unless it is in the loss), ``learning_rate``; where they are at
            work ``kl_coefficient``, ``entropy_coefficient`` (after the step), ``kl_reward`` (KL taken from the reward, a token),
            ``weight`` (mean importance weight) and the algorithm's own; where trajectories bring routes, before the first update,
            ``route_flips`` (share of tokens that some layer's router would have sent elsewhere than the sampler's did),
            ``route_flips_layer`` (the same of tokens and layers), ``kl_sampler_flipped`` and ``kl_sampler_kept`` (of tokens
            with and without a flip); counts ``tokens`` (sampled), ``tokens_all``, ``rows`` (computed), ``sequences``,
            ``sequences_skipped``, ``updates``; ``bad_updates`` and ``rollbacks`` of the run so far; ``seconds_pack``,
            ``seconds_forward``, ``seconds_backward``, ``seconds_optimizer``; ``router_change`` where routers
            learn; ``graphs_compiled``, ``compile_seconds`` (part of the others) with learner.compile. None that is not finite.

        Raises:
            ValueError: a malformed trajectory.
            TrainingDiverged: three updates in a row had a loss or gradient that is not finite, and no rollback is left.
        """
        return self._guarded(lambda: self._update(samples(trajectories, advantages, self.policy.config.vocab_size)))

    def _guarded(self, step: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The metrics of a step, with its seconds; one that can't be taken is counted like an update that was dropped."""
        self.passes.seconds = dict.fromkeys(_PHASES, 0.0)
        try:
            metrics = step()
        except Unmeasurable as e:
            self.guard.failed(str(e))
            self.steps += 1
            metrics = {"updates": 0} | self._counts()
        metrics |= self.compiled.metrics() if self.compiled else {}
        metrics |= {f"seconds_{phase}": seconds for phase, seconds in self.passes.seconds.items()}
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def _counts(self) -> dict[str, float]:
        return {"bad_updates": self.guard.bad_updates, "rollbacks": self.guard.rollbacks}

    def _update(self, everyone: list[Sample]) -> dict[str, float]:
        section, algorithm = self.recipe.algorithm, self.algorithm
        self.passes.check(everyone)
        rate = learning_rate(self.recipe.learner, self.steps, self.horizon, self.learned)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_ratio", 1.0)
        sampled = sum(len(s.target) for s in everyone)
        metrics = {
            "learning_rate": rate,
            "tokens": sampled,
            "tokens_all": sum(len(s.tokens) for s in everyone),
            "sequences": len(everyone),
            "surprisal": -sum(float(s.logprob.sum()) for s in everyone) / max(1, sampled),
        }
        metrics |= self._kl_to_base(everyone) if self.policy.keeps_base else {}
        if section.epochs * section.minibatches > 1:
            everyone = self._as_it_stands(everyone)
        silent = algorithm.zero_is_silent and not algorithm.has_other_terms
        rows, losses, norms = 0, [], []
        skipped = 0
        total: Sums | None = None
        for _ in range(section.epochs):
            for minibatch in self._minibatches(everyone):
                totals = Totals(sum(len(s.target) for s in minibatch), len(minibatch))
                members = [s for s in minibatch if s.advantage.any() or not silent]
                skipped += len(minibatch) - len(members)
                if not members:
                    continue
                loss, sums, computed, gap = self._accumulate(members, totals, total is None)
                rows += computed
                count = sums["tokens"]
                if total is None:
                    metrics |= {"logprob_gap": gap / float(count), "kl_sampler": float(sums["kl_old"] / count)}
                    metrics |= self.replayer.metrics(self.world) if self.replayer else {}
                norm = self._step(loss)
                if norm is not None:
                    losses.append(loss)
                    norms.append(norm)
                    total = sums if total is None else _added(total, sums)
                    measured = float(sums["kl_base"] / count) if algorithm.needs_base else None
                    self.coefficients = algorithm.adapt(self.coefficients, measured, float(sums["entropy"] / count))
        self.steps += 1
        self.learned += bool(losses)
        metrics |= self.policy.router_change()
        metrics |= {"rows": rows, "sequences_skipped": skipped, "updates": len(losses)} | self._counts()
        if total is not None:
            means = {name: float(value) / float(total["tokens"]) for name, value in total.items() if name != "tokens"}
            metrics |= {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms)}
            metrics["clip_share"] = means.pop("clipped")
            if not algorithm.needs_base:
                del means["kl_base"]  # the sample's stands
            if algorithm.correction == "none":
                del means["weight"]
            metrics |= means
        if algorithm.kl_target is not None:
            metrics["kl_coefficient"] = self.coefficients.kl
        if algorithm.entropy_target is not None:
            metrics["entropy_coefficient"] = self.coefficients.applied_entropy
        return metrics

    def _as_it_stands(self, everyone: list[Sample]) -> list[Sample]:
        """Samples with what the step's later updates need of the policy that it began with."""
        proximal = self.algorithm.proximal == "learner"
        record = self.replayer is not None and self.replayer.mode == "learner"
        if not (proximal or record):
            return everyone
        start = self.passes.measure(everyone, False, record)
        if proximal:
            everyone = [replace(s, old_logprob=old) for s, old in zip(everyone, start.logprob, strict=True)]
        if start.routes is not None:
            everyone = [replace(s, old_routes=old) for s, old in zip(everyone, start.routes, strict=True)]
        return everyone

    def _minibatches(self, everyone: Sequence[Sample]) -> Iterator[list[Sample]]:
        """Whole groups, in random order, as even as they divide."""
        groups = sorted({s.group for s in everyone})
        count = min(self.recipe.algorithm.minibatches, len(groups))
        order = torch.randperm(len(groups), generator=self.generator).tolist() if count > 1 else range(len(groups))
        shuffled = [groups[i] for i in order]
        for n in range(count):
            chosen = set(shuffled[n::count])
            yield [s for s in everyone if s.group in chosen]

    def _accumulate(self, members: Sequence[Sample], totals: Totals, first: bool = True) -> tuple[float, Sums, int, float]:
        """Gradient of one optimizer update, micro-batch by micro-batch: loss, sums, rows, sum of |log-ratio|. Of all learners.

        ``first``: none was applied in this step yet, so the routes are those of the policy that began it, and are counted.
        """
        self._zero_grad()
        total, sums, rows, gap = 0.0, None, 0, 0.0
        for chosen, b in self.passes.rounds(members, least=1):
            spare = not chosen  # nobody's: it gives the names of the sums, and the other learners their forward and backward
            computes = not spare or self.passes.lockstep
            with self.passes.timed("forward"), torch.set_grad_enabled(computes):
                base = self.passes.base_run(b) if self.algorithm.needs_base else None
                logprob, entropy, own_TLK = self.passes.policy_run(b)
                loss, part = self.algorithm.loss(self._tokens(b, logprob, entropy, base), totals, self.coefficients)
            if first and not spare and self.replayer is not None and own_TLK is not None:
                self.replayer.count(own_TLK, b, logprob.detach())
            if computes:
                with self.passes.timed("backward"):
                    self.passes.run_backward(loss, forget=self.guard.parameters if spare else ())
            if spare:
                sums = sums or {name: torch.zeros_like(value) for name, value in part.items()}
                continue
            total += float(loss.detach())
            sums = part if sums is None else _added(sums, part)
            rows += b.packed.tokens_T.numel()
            gap += float((logprob.detach() - b.sampler_logprob_M).abs().sum())
        assert sums is not None
        return (total, sums, rows, gap) if self.world is None else self._everyones(self.world, total, sums, rows, gap)

    def _everyones(self, world: World, total: float, sums: Sums, rows: int, gap: float) -> tuple[float, Sums, int, float]:
        """What ``_accumulate`` gives, of all ranks; their gradients are added up, too."""
        with self.passes.timed("backward"):
            world.add_gradients(self.guard.parameters)
            names = sorted(sums)
            total, all_rows, gap, *values = world.add_numbers([total, rows, gap, *(float(sums[name]) for name in names)])
        like = sums[names[0]]
        return total, {n: like.new_tensor(v) for n, v in zip(names, values, strict=True)}, int(all_rows), gap

    def _tokens(self, b: Batch, logprob: Tensor, entropy: Tensor, base: Tensor | None) -> Tokens:
        old, sampler = b.sampler_logprob_M, None
        if self.algorithm.proximal == "learner":  # of a single update a step, the policy at its start is the policy
            old, sampler = logprob.detach() if b.old_logprob_M is None else b.old_logprob_M, b.sampler_logprob_M
        return Tokens(
            logprob_T=logprob,
            old_logprob_T=old,
            advantage_T=b.advantage_M,
            sequence_T=b.sequence_M,
            sequences=len(b.packed.rows),
            entropy_T=entropy,
            base_logprob_T=base,
            sampler_logprob_T=sampler,
            value_T=self.critic.values(b.rows_M) if self.critic else None,
            old_value_T=b.value_M,
            return_T=b.return_M,
        )

    def _zero_grad(self) -> None:
        for optimizer in (self.optimizer, self.critic.optimizer if self.critic else None):
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)

    def _step(self, loss: float) -> float | None:
        """Clip and apply the gradient; the norm before clipping, or None where the update was dropped as not finite."""
        with self.passes.timed("optimizer"):
            parameters = [p for _, p in self.policy.named_parameters()]
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.recipe.learner.max_grad_norm))
            finite = math.isfinite(loss) and math.isfinite(norm) and (self.critic is None or self.critic.finite())
            if finite and self.critic:
                self.critic.clip()
            applied = finite and self.guard.apply()
        self._zero_grad()
        if applied:
            self.version += 1
            return norm
        what = f"loss {loss} or gradient norm {norm} was not finite" if not finite else "the adapter was not finite after it"
        self.guard.failed(what)
        return None

    def _kl_to_base(self, everyone: Sequence[Sample]) -> dict[str, float]:
        """k3 of the policy to the base over the first sequences, up to a budget of rows."""
        chosen: list[Sample] = []
        for s in everyone[:: max(1, len(everyone) // 8)]:
            if sum(len(c.tokens) for c in chosen) + len(s.tokens) <= _KL_SAMPLE_ROWS or not chosen:
                chosen.append(s)
        if not chosen:
            return {}
        with self.passes.timed("forward"), torch.no_grad():
            b = self.passes.batch(chosen)
            policy, base = self.passes.policy_run(b)[0], self.passes.base_run(b)
        return {"kl_base": float(kl.k3(policy, base).mean())}

    # ---- scoring --------------------------------------------------------------------------------------------------

    def score(self, sequences: Sequence[Sequence[int]], adapter_dir: str | Path | None = None) -> list[list[float]]:
        """Log-probability of every token but the first of each sequence, at temperature 1. [len(s) - 1] each.

        With ``adapter_dir`` by the adapter in that PEFT directory (of the recipe's targets, rank and alpha), or the model there.
        """
        if adapter_dir is not None:
            with self.policy.adapter_of(adapter_dir):
                return self.score(sequences)
        out: list[list[float]] = [[] for _ in sequences]
        wanted = [i for i, s in enumerate(sequences) if len(s) > 1]
        with torch.no_grad():
            for chosen in plan([sequences[i] for i in wanted], None, self.recipe.learner.tokens_per_microbatch):
                parts = [list(sequences[wanted[i]]) for i in chosen]
                packed = pack(parts, None, self.device)
                rows = torch.cat([torch.from_numpy(r[:-1]) for r in packed.rows]).to(self.device)
                targets = torch.tensor([t for p in parts for t in p[1:]], device=self.device)
                values = self.policy.logprobs(packed, rows, targets)[0].tolist()
                for i, p in zip(chosen, parts, strict=True):
                    out[wanted[i]], values = values[: len(p) - 1], values[len(p) - 1 :]
        return out

    def score_base(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """As ``score``, by the base without the adapter."""
        with self.policy.base():
            return self.score(sequences)

    # ---- in and out -----------------------------------------------------------------------------------------------

    def digests(self, dtype: torch.dtype | str = torch.float32) -> dict[str, str]:
        """SHA-256 of each tensor of the canonical exported form at ``dtype``, by name."""
        return canonical.digests(self.policy.canonical(_DTYPES[dtype] if isinstance(dtype, str) else dtype))

    def save_adapter(self, directory: str | Path) -> None:
        """Write what the sampler is given: the adapter in PEFT's format, or, where all weights learn, the model at
        ``sampler.dtype``. Never one that is not finite."""
        checkpoint.hand_over(self.policy, Path(directory), _DTYPES[self.recipe.sampler.dtype])

    def save_model(self, directory: str | Path) -> None:
        """Where all weights learn: write what a run ends with, the model that the sampler is given and its tokenizer."""
        checkpoint.hand_over(self.policy, Path(directory), _DTYPES[self.recipe.sampler.dtype], tokenizer=True)

    def save(self, directory: str | Path) -> None:
        """Write all that ``load`` needs to go on as if never interrupted: adapter, optimizer, counters, random state."""
        checkpoint.save(self, Path(directory))

    def load(self, directory: str | Path) -> None:
        """Continue from what ``save`` wrote. Raises BadInput where it is of another base or recipe, or damaged."""
        checkpoint.load(self, Path(directory))
