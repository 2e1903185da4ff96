"""``frontier-tune experts``: which experts a tuned policy's work goes through, and an adapter narrowed to those."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput, Message
from frontier_tune.experts import canonical, selection
from frontier_tune.orchestration import preflight, run_dir
from frontier_tune.orchestration.base import find
from frontier_tune.orchestration.run_dir import RunDir

if TYPE_CHECKING:
    from torch import Tensor

    from frontier_tune.experts.selection import Selection

STEPS = 2  # of the last rollouts, over which the routing is measured: some hundred episodes
SHARES = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)


def routing(run: RunDir) -> tuple[Tensor, Any]:
    """Routing mass [MoE layers, E] of the run's tuned policy over the training episodes of its last steps, and the base's
    configuration. Raises BadInput where the run has no adapter or no rollouts."""
    from frontier_tune.learning import expert_usage
    from frontier_tune.learning.learner import Learner

    if run.model.is_dir():
        raise BadInput(
            f"{run.root}: all weights were trained (learner.trainable: all); there are no adapters of experts to look at"
        )
    if not (run.adapter / canonical.CONFIG).is_file():
        raise BadInput(f"{run.root}: no adapter there yet; finish the run with: frontier-tune tune --resume {run.root}")
    recipe = recipes.load(run.recipe_file)
    root = preflight.find_root(recipe, run.recipe_file)
    base = find(recipe)
    sequences = _played(run, base, root, recipe)
    learner = Learner(base, recipe)
    mass = expert_usage.measured(learner.policy, sequences, lambda s: learner.score(s, run.adapter))
    return mass, learner.policy.config


def narrow(run: RunDir, chosen: Selection, out: Path) -> None:
    """Write the run's adapter with ``chosen`` experts alone to the new directory ``out`` (all experts stored, the others zero).

    Raises BadInput where ``out`` exists.
    """
    from safetensors.torch import save_file

    if out.exists():
        raise BadInput(f"{out}: exists already; name a new directory or remove it")
    if canonical.trains_routers(canonical.read_config(run.adapter)):
        raise BadInput(f"{run.root}: its routers were trained, too (adapter.router); it can't be narrowed to experts of the base")
    tensors = selection.narrowed(selection.load_tensors(run.adapter), chosen)
    work = out.with_name(f".{out.name}-writing")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name in (canonical.CONFIG, "frontier_tune.json"):
        if (run.adapter / name).is_file():
            shutil.copyfile(run.adapter / name, work / name)
    save_file(tensors, str(work / canonical.WEIGHTS), metadata={"format": "pt"})
    chosen.write(work, "all")
    work.rename(out)


def command(target: str, share: float, out: str | None, note: Callable[[str], None]) -> dict[str, Any]:
    """The command's work. Returns what ``--json`` prints: by layer the mass of each expert, and how many make up which share."""
    from frontier_tune.experts.families import moe_shape

    run = run_dir.find(Path.cwd(), target)
    mass, config = routing(run)
    layers = moe_shape(config).layers
    rank = int(canonical.read_config(run.adapter)["r"])
    counts = {s: selection.covering(mass, layers, s, rank) for s in SHARES}
    note(
        f"experts of {mass.shape[1]} on each MoE layer that take a share of the routing weights, over {run.root}'s last episodes:"
    )
    note("share    " + "  ".join(f"layer {layer}" for layer in layers) + "  of all")
    for s, chosen in counts.items():
        cells = "  ".join(f"{len(chosen.layers[layer]):7d}" for layer in layers)
        note(f"{100 * s:5.0f} %  {cells}  {100 * chosen.share:5.0f} %")
    if out is not None:
        chosen = selection.covering(mass, layers, share, rank)
        narrow(run, chosen, Path(out))
        note(
            f"{out}: the adapter of {100 * chosen.share:.0f} % of the experts; evaluate it with: frontier-tune eval {out} "
            f"--recipe {run.recipe_file}, and export it with --layout compact"
        )
    relative = (mass / mass.sum(1, keepdim=True)).tolist()
    return {
        "layers": {str(layer): row for layer, row in zip(layers, relative, strict=True)},
        "shares": {str(s): {str(k): list(v) for k, v in chosen.layers.items()} for s, chosen in counts.items()},
    }


def _played(run: RunDir, base: Path, root: Path, recipe: recipes.Recipe) -> list[list[int]]:
    """The last steps' episodes as the tokens that they render to."""
    files = sorted((run.root / "rollouts").glob("step-*.jsonl"))[-STEPS:]
    if not files:
        raise BadInput(f"{run.root}: no rollouts to measure the routing over")
    with preflight.environment(recipe.environment.path, root, preflight.environment_options(recipe, root)) as pool:
        renderer = preflight.make_renderer(base, pool.description["schemas"])
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    rows = [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [_tokens([Message(**m) for m in row["messages"]], renderer, tokenizer)[: recipe.sampler.max_model_len] for row in rows]


def _tokens(messages: Sequence[Message], renderer: Any, tokenizer: Any) -> list[int]:
    said = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if not said:
        return list(renderer.begin(messages))
    tokens = list(renderer.begin(messages[: said[0]]))
    for i, following in zip(said, [*said[1:], len(messages)], strict=True):
        turn = [*tokenizer.encode(messages[i].content, add_special_tokens=False), renderer.stop_ids[0]]
        tokens += turn
        if following > i + 1:
            tokens += renderer.render(messages[i + 1 : following], turn)
    return tokens
