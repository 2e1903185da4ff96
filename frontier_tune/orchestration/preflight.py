"""Everything that can be refused before training starts is refused here, with one clear message (BadInput, exit code 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from frontier_tune.contracts import BadInput, Failure, Message, Task
from frontier_tune.orchestration import accepted, overlap
from frontier_tune.orchestration import plan as plans
from frontier_tune.orchestration.base import find
from frontier_tune.orchestration.groups import derive_seed
from frontier_tune.recipe import Company, Recipe, full, idle

if TYPE_CHECKING:
    from frontier_tune.algorithms.base import Algorithm

REHEARSAL_TASKS = 400  # general tasks that rehearsal draws from
GENERAL = "frontier_tune.bases.general:GeneralSpreadsheet"  # the environment of the general tasks
COMPANY = "company_seed"  # the option by which an environment takes ``company.seed``
TASKS_TIMEOUT_S = 300.0  # drawing thousands of tasks is one operation
Purpose = Literal["begin", "resume", "evaluate"]
TRIED = 4  # tasks of each split that are begun, to see that their files can be read and their prompts fit


@dataclass(frozen=True)
class Ready:
    """What a run starts from.

    ``base``: the base's directory; ``config``: its transformers configuration; ``options``: the environment's; ``openings``:
    token ids that a few tasks begin with.
    """

    recipe: Recipe
    name: str
    root: Path
    base: Path
    config: Any
    options: dict[str, Any]
    plan: plans.Plan
    train: list[Task]
    heldout: list[Task]
    general: list[Task]
    rehearsal: list[Task]
    openings: list[list[int]]

    @property
    def environments(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """What the episode actor may play: the workflow, and the general suite where it is asked for."""
        found = {"workflow": (self.recipe.environment.path, self.options)}
        return found | ({"general": (GENERAL, {})} if self.general or self.rehearsal else {})

    @property
    def counts(self) -> dict[str, int]:
        return {"training": len(self.train), "held-out": len(self.heldout), "general": len(self.general)}


def find_root(recipe: Recipe, recipe_file: Path) -> Path:
    """The workspace: the nearest directory from the recipe or from here upward in which the environment's path exists."""
    path = recipe.environment.path
    starts = [recipe_file.absolute().parent, Path.cwd()]
    candidates = [c for s in starts for c in (s, *s.parents)]
    for candidate in candidates:
        if ":" not in path and (candidate / path).is_dir():
            return candidate
    for candidate in candidates:
        if (candidate / "envs").is_dir():
            return candidate
    return Path.cwd()


@contextmanager
def environment(path: str, root: Path, options: dict[str, Any]) -> Iterator[Any]:
    """One environment in a worker process. Raises BadInput where it can't be loaded."""
    from frontier_tune.sandbox.pool import EnvironmentPool

    with EnvironmentPool(path, root, options, workers=1, step_timeout_s=TASKS_TIMEOUT_S) as pool:
        yield pool


def environment_options(recipe: Recipe, root: Path) -> dict[str, Any]:
    """The recipe's options, with the company's seed where the environment has conventions to draw from it."""
    path, options = recipe.environment.path, dict(recipe.environment.options)
    with environment(path, root, options) as pool:
        if COMPANY in pool.description["options"]:
            if options.setdefault(COMPANY, recipe.company.seed) != recipe.company.seed:
                raise BadInput(
                    f"environment.options.{COMPANY}: {options[COMPANY]}, but company.seed is {recipe.company.seed}, which the "
                    "run's record would name: set company.seed, and take the option out"
                )
        elif recipe.company.seed != Company().seed:
            raise BadInput(
                f"company.seed: it has no effect on {path}, which takes no '{COMPANY}'; take the key out, or give the "
                "environment that option"
            )
    return options


def settle(recipe: Recipe, root: Path, purpose: Purpose = "begin") -> tuple[Recipe, dict[str, Any]]:
    """The recipe with what its environment decides where it says nothing itself, and the environment's options.

    A run that has begun goes on by what was derived then.
    """
    from frontier_tune.algorithms import registry

    options, env = environment_options(recipe, root), recipe.environment
    with environment(env.path, root, options) as pool:
        limits = pool.description["limits"]
    if env.max_turns is None:
        recipe = recipe.model_copy(update={"environment": env.model_copy(update={"max_turns": limits["turns"]})})
    return registry.settled(recipe, limits["tokens"], root) if purpose == "begin" else recipe, options


def algorithm_of(recipe: Recipe, root: Path, purpose: Purpose = "begin") -> Algorithm | None:
    """The recipe's algorithm; None to evaluate, for which there is none. Raises BadInput where it, or a setting, does not fit.

    Settings without effect keep a run from beginning, not one that has begun from going on.
    """
    from frontier_tune.algorithms import registry

    if purpose == "evaluate":
        return None
    try:
        algorithm = registry.build(recipe, root, strict=purpose == "begin")
    except BadInput as e:
        if purpose == "begin":
            raise
        raise BadInput(
            f"{e}. The run began with this: where an earlier version took it, this one can't go on with it; start a new run"
        ) from None
    if full.whole(recipe) and (algorithm.needs_base or algorithm.penalises):  # an own algorithm's; ours are refused as recipes
        raise BadInput(
            f"algorithm: {recipe.algorithm.name} takes a KL to the base, which is not there any more once its weights are "
            "trained (learner.trainable is all); set its kl_coefficient to 0"
        )
    overlap.check(recipe, algorithm)  # settings that don't fit together
    return algorithm


def check_turns(pool: Any, recipe: Recipe, tasks: Sequence[Task]) -> None:
    """Raises BadInput where a task's golden program takes more turns than an episode has: nobody could solve it."""
    turns = recipe.environment.turns
    for task in tasks:
        try:
            needed = len(pool.golden(task))
        except BadInput:
            continue  # the environment has no golden program, or not for this task: `env check` tells
        if needed > turns:
            raise BadInput(
                f"environment.max_turns: {turns}, but the golden program of {task.split} task {task.hash} ({task.kind}) takes "
                f"{needed} turns; raise it, or limits.turns of the environment where the recipe doesn't name it"
            )


def check_effects(recipe: Recipe, root: Path, effects: Mapping[str, Any]) -> None:
    """Raises BadInput where a tool writes to production and the recipe or the policy file does not allow it.

    ``effects``: what the environment declares, by tool.
    """
    from frontier_tune.governance import policy
    from frontier_tune.sdk.effects import check_allowed

    path, allowed = recipe.environment.path, recipe.environment.allow_real_writes
    check_allowed(path, effects, allowed)
    real = [name for name, effect in effects.items() if effect == "real"]
    unnamed = [name for name in real if name not in allowed]
    if unnamed:
        raise BadInput(
            f"environment: {path} has tools that write to production: {', '.join(unnamed)}; declare them virtual "
            f"(@tool(effect='virtual')), or name them in environment.allow_real_writes: [{', '.join(real)}]"
        )
    policy.load(root).require_real_writes(path, real)


def check(recipe: Recipe, recipe_file: Path, purpose: Purpose = "begin") -> Ready:
    """Load and check base, adapter, environment, tasks, memory. Raises BadInput; starts no training.

    ``purpose``: "resume" and "evaluate" take the recipe of a run that has begun as that stands.
    """
    from transformers import AutoConfig

    from frontier_tune.native import build
    from frontier_tune.sdk.tasks import check_disjoint

    root = find_root(recipe, recipe_file)
    if purpose == "begin":
        idle.check(recipe)
    recipe, options = settle(recipe, root, purpose)
    algorithm = algorithm_of(recipe, root, purpose)
    base = find(recipe)
    config = AutoConfig.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    check_trainable(recipe, config)
    plans.require(recipe, config)  # what a plan may ask for and this version can't run
    check_lengths(recipe, config)
    build.build()  # here, once, where a missing compiler is told clearly: actors load what lies there then
    env = recipe.environment
    with environment(env.path, root, options) as pool:
        train, heldout = both_splits(pool, recipe, root, options)
        openings = check_openings(pool, recipe, algorithm if purpose == "begin" else None, base, train, heldout)
    general = _general(root, "heldout", env.general_tasks, derive_seed("general"))
    rehearsed = recipe.algorithm.rehearsal_groups and REHEARSAL_TASKS
    rehearsal = _general(root, "train", rehearsed, derive_seed("rehearsal", recipe.seed))
    check_disjoint(rehearsal, general)
    plan = plans.make(recipe, config, root, recipe_file.stem)
    directory = run_directory(recipe, root)
    plans.require_resources(plan, directory)
    plans.require_here(plan, directory)
    return Ready(recipe, recipe_file.stem, root, base, config, options, plan, train, heldout, general, rehearsal, openings)


def check_openings(
    pool: Any, recipe: Recipe, algorithm: Algorithm | None, base: Path | None, train: Sequence[Task], heldout: Sequence[Task]
) -> list[list[int]]:
    """Token ids that a few tasks begin with. Raises BadInput where one can't begin, or can't be done in an episode.

    Without a ``base`` there is no tokenizer: what needs none is checked, and [] returned. ``algorithm``: one whose penalty for
    length is to be checked, too.
    """
    tried = [*train[:TRIED], *train[-1:], *heldout[:TRIED]]  # those of people come last
    limit = pool.description["limits"]["tokens"]
    if base is None:
        check_turns(pool, recipe, tried)
        check_overlong(recipe, algorithm, [], limit)
        return []
    renderer = make_renderer(base, pool.description["schemas"])
    begun = [_begin(pool, task) for task in tried]
    check_turns(pool, recipe, tried)
    openings = _rendered(recipe, renderer, begun)
    check_overlong(recipe, algorithm, openings, limit)
    return openings


def both_splits(pool: Any, recipe: Recipe, root: Path, options: Mapping[str, Any]) -> tuple[list[Task], list[Task]]:
    """Training and held-out tasks of an environment that may be trained on. Raises BadInput where it mayn't, or they overlap."""
    from frontier_tune.sdk.tasks import check_disjoint

    env = recipe.environment
    check_effects(recipe, root, pool.description["effects"])
    train = draw(pool, "train", env.train_tasks, recipe.seed)
    if env.accepted_tasks:
        known = {t.hash for t in train}
        train += [t for t in accepted.tasks(recipe, root, options) if t.hash not in known]
    heldout = draw(pool, "heldout", env.heldout_tasks, derive_seed("heldout"))  # the same for every run seed: runs compare
    check_disjoint(train, heldout)
    return train, heldout


def run_directory(recipe: Recipe, root: Path) -> Path:
    """Where runs of the recipe are written."""
    return Path(recipe.run.directory) if recipe.run.directory else root / "runs"


def make_renderer(base: Path, tools: Sequence[dict[str, Any]]) -> Any:
    """The renderer that fits the base's tokenizer. Raises BadInput where the base has none that can be loaded."""
    from transformers import AutoTokenizer

    from frontier_tune.episodes.renderers import renderer_for

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as e:
        raise BadInput(f"{base}: its tokenizer can't be loaded: {str(e).splitlines()[0]}") from None
    return renderer_for(tokenizer, tools)


def draw(pool: Any, split: str, n: int, seed: int) -> list[Task]:
    """Tasks of a split. Raises BadInput where there are none."""
    tasks: list[Task] = pool.tasks(split, n, seed)
    if not tasks:
        raise BadInput(f"environment: the {split} task set is empty; let tasks() return at least one")
    return tasks


def _general(root: Path, split: str, n: int, seed: int) -> list[Task]:
    if n == 0:
        return []
    with environment(GENERAL, root, {}) as pool:
        return draw(pool, split, n, seed)


def _begin(pool: Any, task: Task) -> list[Message]:
    slot = pool.new_slot()
    pool.submit(slot, "reset", {"task": task.to_json()})
    while True:
        for found, result in pool.poll(1.0):
            if found == slot:
                pool.submit(slot, "close")
                if isinstance(result, Failure):
                    raise BadInput(
                        f"environment: {task.split} task {task.hash} ({task.kind}) can't begin: {result.detail or result.kind}; "
                        "mend the file or the generator that this task comes from"
                    )
                return [Message(**m) for m in result["messages"]]


def check_trainable(recipe: Recipe, config: Any) -> None:
    """Raises BadInput for a dense base, or targets that match nothing."""
    from frontier_tune.experts import families

    if full.whole(recipe):
        families.moe_shape(config)
    else:
        families.peft_config(recipe.adapter, config)


def check_lengths(recipe: Recipe, config: Any) -> None:
    """Raises BadInput where the context is longer than the base's."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions and recipe.sampler.max_model_len > positions:
        raise BadInput(
            f"sampler.max_model_len: {recipe.sampler.max_model_len}, but {recipe.base} has {positions} positions; lower it"
        )


def check_overlong(recipe: Recipe, algorithm: Algorithm | None, openings: Sequence[Sequence[int]], tokens: int | None) -> None:
    """Raises BadInput where no episode can sample so much that length costs it anything. ``tokens``: the environment's limit."""

    limit, buffer = (getattr(algorithm, f"overlong_{name}", None) for name in ("limit", "buffer"))
    if not limit or not buffer:
        return
    env = recipe.environment
    rooms = {"environment.max_turns times max_tokens_per_turn": env.turns * env.max_tokens_per_turn}
    if tokens is not None and not recipe.algorithm.rehearsal_groups:  # the general tasks have no such limit
        rooms["the environment's limits.tokens"] = tokens
    if openings:
        shortest = min(map(len, openings))
        rooms[f"openings of {shortest} tokens and more in sampler.max_model_len"] = recipe.sampler.max_model_len - shortest
    what, room = min(rooms.items(), key=lambda item: item[1])
    if limit - buffer >= room:
        lower = f", and algorithm.overlong_buffer below that ({buffer})" if buffer >= room else ""
        raise BadInput(
            f"algorithm.overlong_buffer: costs reward beyond {limit - buffer} sampled tokens, but {what} leave at most {room}; "
            f"set algorithm.overlong_limit to {room} or less{lower}"
        )


def _rendered(recipe: Recipe, renderer: Any, begun: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Openings as token ids. Raises BadInput where the longest leaves no room for a turn."""
    openings = [list(renderer.begin(messages)) for messages in begun]
    longest = max(map(len, openings))
    room = recipe.sampler.max_model_len - longest
    if room < recipe.environment.max_tokens_per_turn:
        raise BadInput(
            f"sampler.max_model_len: {recipe.sampler.max_model_len} leaves {room} tokens after an opening of {longest}; "
            f"a turn takes up to {recipe.environment.max_tokens_per_turn} (environment.max_tokens_per_turn): "
            "raise the one or lower the other"
        )
    return openings
