"""What routing replay changes, on the very same tokens: a bfloat16 sampler against a float32 learner, from one state of a run.

No run is trained: from each state, steps of the recipe are played, and their sampled tokens are scored by the learner on its own
routes (none), on those it chose itself before (R2) and on the sampler's (R3). States: a fresh adapter (``start``), and the last
checkpoint of each run given, with its optimizer.

    python benchmarks/moe_mismatch.py runs/A runs/B --deep --json benchmarks/results/moe_mismatch.json

With --deep also a base with random weights that routes as deeply as Qwen3-30B-A3B (benchmarks/moe_deep_base.py).

Two divergences a token, both k3 on sampled tokens:

- *mismatch*, sampler to learner, with the same weights on both sides. R3 acts on it. R2 can't: before a step's first update the
  routes that it replays are those that the learner takes anyway (measured here as ``r2_first_pass``: what is left is the order
  of additions).
- *staleness*, learner before to learner after one update on half of the groups (at --multiple times the recipe's peak learning
  rate), measured on the other half, as a second minibatch sees it. R2 and R3 act on it: routes stay those of the start.

Each is split by whether the token's own route differs (in any layer, at the position that predicts it), only that of a token
before it (whose keys and values it reads), or none. Three numbers stand beside what R3 leaves of the mismatch, all on the
sampler's routes: the float32 learner against itself with nothing but its head in bfloat16; against a learner whose base is
bfloat16 throughout; and the sampler against the learner with its adapter rounded as the sampler rounds it. Ratios have a 95 %
interval by resampling groups. Rows: none divided by replay, to be at least 2.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import harness  # noqa: E402

if TYPE_CHECKING:
    from frontier_tune.contracts import Trajectory
    from frontier_tune.learning.batch import Sample
    from frontier_tune.learning.learner import Learner
    from frontier_tune.recipe import Recipe

BAR = 2.0
UNIT = "1e-6 nats"
EXTREME = 2.0  # a token is called extreme where one side gives it more than so many times the other's probability
# Of the recipe, for measuring: one update on what it is given; routes are kept, and what is replayed is switched here.
SETTINGS = [
    *("sampler.dtype=bfloat16", "algorithm.replay=sampler", "algorithm.proximal=learner", "algorithm.correction=none"),
    *("algorithm.epochs=1", "algorithm.minibatches=1", "algorithm.rehearsal_groups=0", "environment.general_tasks=0"),
    *("learner.dtype=float32", "learner.schedule=constant", "learner.warmup_steps=0", "tracking.wandb=off", "run.directory=null"),
]


@dataclass(frozen=True)
class Tokens:
    """Sampled tokens of some samples: their group, and what of their routes differs between two forwards. [M] each."""

    group_M: np.ndarray
    here_M: np.ndarray  # at the position that predicts the token, in some layer
    before_M: np.ndarray  # not there, but at an earlier position

    @classmethod
    def of(cls, members: Sequence[Sample], a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> Tokens:
        """``a``, ``b``: routes [n, L, K] of each sample's first tokens, as two forwards chose them."""
        group, here, before = [], [], []
        for s, one, other in zip(members, a, b, strict=True):
            n = int(s.target[-1])  # the last token predicts nothing
            differs_n = (np.sort(one[:n], axis=2) != np.sort(other[:n], axis=2)).any(axis=(1, 2))
            at = s.target - 1
            here.append(differs_n[at])
            before.append(~differs_n[at] & (np.cumsum(differs_n)[at] > 0))
            group.append(np.full(len(at), s.group))
        return cls(*map(np.concatenate, (group, here, before)))

    def split(self, kl_M: np.ndarray) -> dict[str, Any]:
        """Means over all tokens and over each kind, with the shares of the kinds."""
        kinds = {"flipped": self.here_M, "flipped_before": self.before_M, "kept": ~(self.here_M | self.before_M)}
        return {
            "kl": float(kl_M.mean()),
            **{f"kl_{name}": float(kl_M[chosen].mean()) if chosen.any() else None for name, chosen in kinds.items()},
            **{f"share_{name}": float(chosen.mean()) for name, chosen in kinds.items()},
        }

    def ratio(self, ours_M: np.ndarray, theirs_M: np.ndarray, draws: int = 2000) -> tuple[float, float]:
        """95 % interval of sum(theirs) / sum(ours), groups drawn with replacement: tokens of a group are not independent."""
        _, number_M = np.unique(self.group_M, return_inverse=True)
        ours_P, theirs_P = (np.bincount(number_M, x) for x in (ours_M, theirs_M))
        drawn = np.random.default_rng(0).integers(len(ours_P), size=(draws, len(ours_P)))
        low, high = np.quantile(theirs_P[drawn].sum(1) / np.maximum(ours_P[drawn].sum(1), 1e-300), (0.025, 0.975))
        return float(low), float(high)


def k3(q: Sequence[np.ndarray], p: Sequence[np.ndarray]) -> np.ndarray:
    """Of KL(q || p) at each token sampled from q, [M], from log-probabilities by sample."""
    log_ratio_M = np.concatenate(p) - np.concatenate(q)
    return np.expm1(log_ratio_M) - log_ratio_M


def extreme(q: Sequence[np.ndarray], p: Sequence[np.ndarray]) -> float:
    """Share of tokens whose ratio is above EXTREME one way or the other (arXiv:2510.11370, section 3)."""
    return float((np.abs(np.concatenate(p) - np.concatenate(q)) > np.log(EXTREME)).mean())


@contextmanager
def head_in_bfloat16() -> Iterator[None]:
    """While inside, final hidden states and the output embedding are rounded before logits are taken, and the logits, too."""
    import torch

    from frontier_tune.learning import model

    exact: Callable[..., Any] = model.token_logprobs

    def rounded(hidden: torch.Tensor, head: torch.Tensor, *rest: Any) -> Any:
        return exact(hidden.bfloat16(), head.bfloat16(), *rest)

    model.token_logprobs = rounded  # type: ignore[assignment]
    try:
        yield
    finally:
        model.token_logprobs = exact


def scores(learner: Learner, members: Sequence[Sample], mode: str, record: bool = False) -> Any:
    """The learner's log-probabilities (and own routes) by sample, as it replays in ``mode``."""
    assert learner.replayer is not None
    kept, learner.replayer.mode = learner.replayer.mode, mode  # type: ignore[assignment]
    try:
        return learner.passes.measure(members, False, record)
    finally:
        learner.replayer.mode = kept


def mismatch(learner: Learner, rounding: Learner, members: Sequence[Sample]) -> tuple[dict[str, Any], list[Sample]]:
    """Sampler to learner before any update, and the samples with the learner's own routes. ``rounding``: its bfloat16 twin."""
    import torch

    sampler = [s.logprob for s in members]
    free = scores(learner, members, "none", record=True)
    members = [replace(s, old_routes=own) for s, own in zip(members, free.routes, strict=True)]
    r2, r3 = (scores(learner, members, mode).logprob for mode in ("learner", "sampler"))
    tokens = Tokens.of(members, [s.routes for s in members if s.routes is not None], free.routes)
    kl = {name: k3(sampler, found) for name, found in (("none", free.logprob), ("r2", r2), ("r3", r3))}
    found: dict[str, Any] = {name: tokens.split(values) for name, values in kl.items()}
    for name, values in (("none", free.logprob), ("r3", r3)):
        found[name]["extreme"] = extreme(sampler, values)
    found["r3"]["ratio_ci95"] = tokens.ratio(kl["r3"], kl["none"])
    found["r2_first_pass"] = float(np.abs(np.concatenate(r2) - np.concatenate(free.logprob)).max())
    with head_in_bfloat16():
        head = scores(learner, members, "sampler").logprob
    found["left_by_r3"] = {"head": float(k3(r3, head).mean())}
    whole = scores(rounding, members, "sampler").logprob
    found["left_by_r3"]["bfloat16_learner"] = float(k3(r3, whole).mean())
    parameters = [p for _, p in learner.policy.named_parameters()]
    exact = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p in parameters:
            p.copy_(p.bfloat16())
        rounded = scores(learner, members, "sampler").logprob
        for p, value in zip(parameters, exact, strict=True):
            p.copy_(value)
    found["left_by_r3"]["adapter_rounded"] = float(k3(sampler, rounded).mean())
    return found, members


def staleness(learner: Learner, played: Sequence[Trajectory], members: Sequence[Sample]) -> dict[str, Any]:
    """Learner before to learner after one update on the even groups, on the odd ones. The update itself replays nothing."""
    later = [s for s in members if s.group % 2]
    before = {"none": scores(learner, later, "none").logprob, "r3": scores(learner, later, "sampler").logprob}
    assert learner.replayer is not None
    learner.replayer.mode = "none"
    metrics = learner.learn([[t for t in played if not t.spec.group % 2]])
    learner.replayer.mode = "sampler"
    free = scores(learner, later, "none", record=True)
    after = {name: scores(learner, later, mode).logprob for name, mode in (("r2", "learner"), ("r3", "sampler"))}
    tokens = Tokens.of(later, [s.old_routes for s in later if s.old_routes is not None], free.routes)
    kl = {"none": k3(before["none"], free.logprob), "r2": k3(before["none"], after["r2"]), "r3": k3(before["r3"], after["r3"])}
    found: dict[str, Any] = {name: tokens.split(values) for name, values in kl.items()}
    for name in ("r2", "r3"):
        found[name]["ratio_ci95"] = tokens.ratio(kl[name], kl["none"])
    sampler = [s.logprob for s in later]  # what a ratio against the sampler sees then: both at once
    seen = {"none": free.logprob, **after}
    found["sampler_to_updated"] = {name: float(k3(sampler, values).mean()) for name, values in seen.items()}
    return found | {"updates": metrics["updates"], "learning_rate": metrics["learning_rate"]}


def measure(recipe: Recipe, recipe_file: Path, checkpoint: Path | None, steps: int) -> dict[str, Any]:
    """Everything of one state: the recipe's own start, or ``checkpoint``. The next ``steps`` of the plan of groups are played."""
    from frontier_tune.sampling import environment

    environment.apply(recipe.sampler.threads)
    from frontier_tune.episodes import play
    from frontier_tune.learning.batch import samples
    from frontier_tune.learning.learner import Learner
    from frontier_tune.orchestration import preflight
    from frontier_tune.orchestration.groups import GroupPlan
    from frontier_tune.sampling.engine import VLLMSampler
    from frontier_tune.sandbox.pool import EnvironmentPool

    ready = preflight.check(recipe, recipe_file)
    recipe = ready.recipe
    env, section, algorithm = recipe.environment, recipe.sampler, recipe.algorithm
    plan = GroupPlan(ready.train, recipe.seed, algorithm.groups_per_step, algorithm.group_size, section.temperature)
    learner = Learner(ready.base, recipe)
    twin = Learner(ready.base, recipe.model_copy(update={"learner": recipe.learner.model_copy(update={"dtype": "bfloat16"})}))
    with tempfile.TemporaryDirectory() as scratch:
        if checkpoint is not None:
            learner.load(checkpoint / "learner")
        learner.save_adapter(scratch)
        with (
            EnvironmentPool(env.path, ready.root, ready.options, env.workers, env.step_timeout_s) as pool,
            VLLMSampler(ready.base, section, recipe.adapter, seed=recipe.seed, routes=True) as sampler,
        ):
            sampler.sync(scratch, max(1, learner.version))
            limits: dict[str, Any] = {"max_turns": env.turns, "max_tokens_per_turn": env.max_tokens_per_turn}
            limits |= {"max_model_len": section.max_model_len, "concurrency": section.max_sequences}
            renderer = preflight.make_renderer(ready.base, pool.description["schemas"])
            specs = [
                replace(spec, group=spec.group + n * plan.groups_per_step)  # else groups of two steps have one number
                for n in range(steps)
                for spec in plan.step(learner.steps + n)
            ]
            played = list(play(specs, pool, renderer, sampler, **limits))
        played.sort(key=lambda t: (t.spec.group, t.spec.member))
        with twin.policy.adapter_of(scratch):
            found, members = mismatch(learner, twin, samples(played, [0.0] * len(played), ready.config.vocab_size))
    return {
        "steps_before": learner.steps,
        "tokens": sum(len(s.target) for s in members),
        "success": float(np.mean([t.success for t in played])),
        "surprisal": -float(np.mean(np.concatenate([s.logprob for s in members]))),
        "mismatch": found,
        "staleness": staleness(learner, played, members),
    }


def measure_deep(quick: bool) -> dict[str, Any]:
    """The mismatch alone, of the base that routes deeply."""
    from benchmarks import moe_deep_base as deep
    from frontier_tune.sampling import environment

    made = deep.recipe(quick)
    environment.apply(made.sampler.threads)
    from frontier_tune.learning.learner import Learner
    from frontier_tune.sampling.engine import VLLMSampler

    with tempfile.TemporaryDirectory() as scratch:
        deep.build(Path(scratch), *((4, 16) if quick else ()))
        with VLLMSampler(scratch, made.sampler, made.adapter, routes=True) as sampler:
            members = deep.sampled(sampler, 2 if quick else deep.PROMPTS)
        twin = Learner(scratch, made.model_copy(update={"learner": made.learner.model_copy(update={"dtype": "bfloat16"})}))
        found, members = mismatch(Learner(scratch, made), twin, members)
    surprisal = -float(np.mean(np.concatenate([s.logprob for s in members])))
    return {"tokens": sum(len(s.target) for s in members), "surprisal": surprisal, "mismatch": found}


def rows(name: str, found: dict[str, Any]) -> list[harness.Row]:
    """None divided by replay: of the mismatch and of staleness, over all tokens and over those whose route differs."""
    out = []
    first, later = found["mismatch"], found.get("staleness")
    for case, kl, part, variant, bar in (
        ("mismatch, R3", first, "kl", "r3", BAR),
        ("mismatch of flipped tokens, R3", first, "kl_flipped", "r3", None),
        ("mismatch before the first update, R2: can't act", first, "kl", "r2", None),
        ("staleness, R2", later, "kl", "r2", BAR),
        ("staleness, R3", later, "kl", "r3", BAR),
        ("staleness of flipped tokens, R2", later, "kl_flipped", "r2", None),
    ):
        ours, theirs = (kl[variant][part], kl["none"][part]) if kl else (None, None)
        if ours is not None and theirs is not None:
            ratio = theirs / ours if ours else 1.0
            figures = (1e6 * ours, 1e6 * theirs)
            out.append(harness.Row(f"{name}: {case}", *figures, "none", UNIT, ratio, found["tokens"], bar is not None, bar))
    return out


def show(name: str, found: dict[str, Any]) -> None:
    """Figures of one state for people."""
    print(f"{name}: {found['tokens']} tokens, {found['surprisal']:.2f} nats each")
    for what in [w for w in ("mismatch", "staleness") if w in found]:
        for variant in ("none", "r2", "r3"):
            kl = found[what][variant]
            parts = ", ".join(
                f"{part.replace('_', ' ')} {1e6 * kl['kl_' + part]:.2f} ({100 * kl['share_' + part]:.1f} % of tokens)"
                for part in ("flipped", "flipped_before", "kept")
                if kl["kl_" + part] is not None
            )
            interval = "" if variant == "none" or "ratio_ci95" not in kl else " to ".join(f"{x:.2f}" for x in kl["ratio_ci95"])
            print(f"  {what}, {variant:4} {1e6 * kl['kl']:8.2f} {UNIT}: {parts}{interval and f'; ratio {interval}'}")
    left = ", ".join(f"{part.replace('_', ' ')} {1e6 * value:.2f}" for part, value in found["mismatch"]["left_by_r3"].items())
    print(f"  beside what R3 leaves: {left} {UNIT}", flush=True)


def main() -> None:
    options = harness.parser(__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("runs", nargs="*", type=Path, help="runs of the recipe, whose last checkpoints are further states")
    options.add_argument("--recipe", type=Path, default=harness.ROOT / "recipes" / "month_end_close.yaml")
    options.add_argument("--deep", action="store_true", help="a base that routes as deeply as Qwen3-30B-A3B, too")
    options.add_argument("--steps", type=int, default=8, help="of the recipe, played from each state")
    options.add_argument("--multiple", type=float, default=3.0, help="of the recipe's learning rate, for the one update")
    options.add_argument("--set", action="append", default=[], help="settings of the recipe, KEY=VALUE")
    args = options.parse_args()
    from frontier_tune import recipe as recipes

    rate = args.multiple * recipes.load(args.recipe).learner.learning_rate
    changes = [*SETTINGS, f"learner.learning_rate={rate:g}", *(["algorithm.groups_per_step=4"] if args.quick else []), *args.set]
    found: dict[str, Any] = {}
    for run in [None, *args.runs]:
        file = run / "recipe.yaml" if run else args.recipe
        checkpoint = max((run / "checkpoints").glob("step-*"), default=None) if run else None
        if run and checkpoint is None:
            raise SystemExit(f"{run}: no checkpoint there; give runs that have saved one")
        made = recipes.load(file, changes)
        name = f"{run.name}, step {int(checkpoint.name.removeprefix('step-'))}" if run and checkpoint else "start"
        found[name] = measure(made, args.recipe, checkpoint, 1 if args.quick else args.steps)
        show(name, found[name])
    if args.deep:
        found["deep"] = measure_deep(args.quick)
        show("deep", found["deep"])
    table = [row for name, state in found.items() for row in rows(name, state)]
    settings = {"states": found, "settings": changes, "recipe": args.recipe.name}
    if not harness.report("moe_mismatch", table, harness.machine(), settings, args.json) and not args.quick:
        raise SystemExit(3)


if __name__ == "__main__":
    main()
