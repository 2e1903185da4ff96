"""What each subcommand does, joined from the rooms. Imported only when one runs."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput, FrontierTuneError, LimitReached


def note(text: str) -> None:
    print(text, flush=True)


def tune(a: argparse.Namespace) -> int:
    from frontier_tune.orchestration import checkpoint, inputs, preflight, run_dir
    from frontier_tune.orchestration import tune as runs
    from frontier_tune.orchestration.stop import Stopped
    from frontier_tune.recipe import idle

    resumed = _find_resumed(a) if a.resume else None
    if resumed is None and not a.recipe:
        raise BadInput("tune: name a recipe, for example recipes/month_end_close.yaml, or continue a run with --resume")
    file = Path(a.recipe) if a.recipe else resumed.recipe_file  # type: ignore[union-attr]
    recipe = recipes.load(file, a.set)
    if resumed is not None:
        resumed.lock()
        # Before anything is written: evaluations of a run without a checkpoint yet are taken over, too.
        written = recipes.load(resumed.recipe_file)
        recipe = checkpoint.same_recipe(written, recipe, resumed.recipe_file)
        idle.check(recipe, written)
    purpose: preflight.Purpose = "begin" if resumed is None else "resume"
    if a.dry_run:
        from frontier_tune.orchestration.dry_run import dry_run

        note(dry_run(recipe, file, purpose))
        return 0
    ready = preflight.check(recipe, file, purpose)
    run = resumed or run_dir.create(ready.root, recipe, ready.name)
    note(f"run        {run.root}")
    with run:
        inputs.pin(ready, run, note, a.accept_changes)
        try:
            content = runs.tune(ready, run, note, resume=resumed is not None)
        except (Stopped, LimitReached) as e:
            print(f"frontier-tune: {runs.describe_failure(e, run)}", file=sys.stderr)
            return e.exit_code
        except FrontierTuneError as e:
            e.args = (runs.describe_failure(e, run),)
            raise
    _show(content, run.root)
    return 0


def _find_resumed(a: argparse.Namespace) -> Any:
    """The run to continue; its workspace is the one around the run, the recipe, or here."""
    from frontier_tune.orchestration import run_dir

    for start in [Path.cwd(), *(Path(a.recipe).absolute().parents if a.recipe else ())]:
        if (start / "runs").is_dir() or (Path(a.resume) / "recipe.yaml").is_file():
            return run_dir.find(start, a.resume)
    return run_dir.find(Path.cwd(), a.resume)


def _show(content: dict[str, Any], root: Path) -> None:
    from frontier_tune.evaluation.compare import table

    note(f"\n{table(content)}\n")
    train = content.get("train")
    if train:
        note(f"training   {train['steps']} steps, {train['seconds'] / 60:.1f} min, {train['tokens_sampled']:,} tokens sampled")
    result = "model" if (root / "model").is_dir() else "adapter"
    note(f"{result:10} {root / result}\nreport     {root / 'report.html'}")


def evaluate(a: argparse.Namespace) -> int:
    from frontier_tune.orchestration import evaluate as evaluations

    content, out = evaluations.evaluate(a.target, a.recipe, a.set, a.out, note)
    _show(content, out)
    return 0


def status(a: argparse.Namespace) -> int:
    from frontier_tune.orchestration import run_dir
    from frontier_tune.orchestration import status as statuses

    found = statuses.gather(run_dir.find(Path.cwd(), a.target))
    note(json.dumps(found, indent=1) if a.json else statuses.describe(found))
    return 0


def report(a: argparse.Namespace) -> int:
    from frontier_tune.reporting import report as reports

    note(str(reports.write(_run(a.target))))
    return 0


def verify(a: argparse.Namespace) -> int:
    from frontier_tune.governance import record

    root = _run(a.target)
    problems = record.verify(root)
    for line in problems:
        print(line, file=sys.stderr)
    note(f"{root}: {'differs from its record' if problems else 'is as recorded'}")
    return 3 if problems else 0


def experts(a: argparse.Namespace) -> int:
    from frontier_tune.orchestration import narrow

    found = narrow.command(a.target, a.share, a.out, (lambda text: None) if a.json else note)
    if a.json:
        print(json.dumps(found))
    return 0


def export(a: argparse.Namespace) -> int:
    from frontier_tune.orchestration.base import find, here
    from frontier_tune.serving import export as serving

    source, directory = Path(a.target), None
    if not source.is_dir():  # the name of a run, or ``latest``
        source = _run(a.target)
    if a.base is not None:
        directory = here(a.base)
    elif (source / "recipe.yaml").is_file():
        directory = find(recipes.load(source / "recipe.yaml"))
    done = serving.export(source, a.layout, Path(a.out), directory)
    note(f"{done.path}: {', '.join(sorted(done.files))}" + (f" (mean gap {done.gap:.1e} nats)" if done.gap is not None else ""))
    if done.remark:
        note(f"{done.path}: {done.remark}")
    return 0


def base(a: argparse.Namespace) -> int:
    from frontier_tune import bases

    if a.action == "show":
        from transformers import AutoConfig

        from frontier_tune.orchestration.base import here
        from frontier_tune.orchestration.plan import count_parameters

        found = bases.load(str(here(a.set[0] if a.set else "nano")))

        total, experts, active = count_parameters(AutoConfig.from_pretrained(str(found.directory), local_files_only=True))
        note(
            f"{found.directory}: {found.model_type}, {total:,} parameters, {experts:,} in experts, {active:,} active for a token"
        )
        return 0
    if a.action == "probe":
        return _probe(a.set[0] if a.set else "nano")
    import dataclasses

    from frontier_tune.bases import nano

    fields = {f.name for f in dataclasses.fields(nano.NanoPlan)}
    chosen = recipes.apply_overrides({}, a.set)
    unknown = sorted(set(chosen) - fields)
    if unknown:
        raise BadInput(f"base build: unknown keys {unknown}; known: {', '.join(sorted(fields))}")
    out = Path(a.out) if a.out else bases.NANO
    work = out.with_name(f".{out.name}.building")
    nano.build(nano.NanoPlan(**chosen), out, work)
    shutil.rmtree(work, ignore_errors=True)  # kept where the build is cut off: the same command goes on from there
    note(f"base       {out}")
    return 0


def _probe(name: str, dialogues: int = 300, scenes: int = 30) -> int:
    """The skills of a base that speaks the compact grammar, and its chance among the alternatives that companies choose from."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from frontier_tune.bases import probes
    from frontier_tune.bases.corpus.dialogues import make_dialogue, record_dialogue
    from frontier_tune.bases.corpus.questions import PRACTICE
    from frontier_tune.orchestration.base import here
    from frontier_tune.sdk import practice as workflows
    from frontier_tune.sdk.grammar import CALL

    directory = str(here(name))
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if CALL not in tokenizer.get_vocab():
        raise BadInput(f"base probe: the tokenizer of {name} lacks {CALL}; only a base built by `base build` can be probed so")
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=torch.float32).eval()
    asked = (program(999, i) for program in (make_dialogue, record_dialogue) for i in range(dialogues))
    for question, found in probes.probe(model, tokenizer, asked).items():
        note(f"{question:18} n {found['n']:3d}   right {found['right']:.2f}   skill {found['skill']:.2f}")
    for practice in PRACTICE:
        shares = probes.alternatives(model, tokenizer, practice, scenes)
        low, high, total = 100 * min(shares.values()), 100 * max(shares.values()), 100 * sum(shares.values())
        note(f"{practice.name:18} {len(shares)} alternatives, each {low:.1f} to {high:.1f} %, together {total:.0f} %")
    for path in _plan(directory).get("practice", ()):
        for kind, ways in workflows.ways(path).items():
            found_ways = [100 * chance for chance in probes.chances(model, tokenizer, ways)]
            low, high, share = min(found_ways), max(found_ways), 100 / len(ways)
            name = f"{Path(path).name} {kind}"
            note(f"{name:24} {len(ways)} ways, {low:.1f} to {high:.1f} % each; by chance {share:.1f} %")
    return 0


def _plan(directory: str) -> dict[str, Any]:
    """What a base of `base build` was built by; nothing for others."""
    path = Path(directory) / "record.json"
    return dict(json.loads(path.read_text()).get("plan", {})) if path.is_file() else {}


def env(a: argparse.Namespace) -> int:
    if a.action in ("check", "init"):
        from frontier_tune.cli import environments

        return environments.check(a) if a.action == "check" else environments.init(a)
    from frontier_tune.evaluation import scripts
    from frontier_tune.orchestration import preflight
    from frontier_tune.sdk import registry

    root = Path(a.root or ".").resolve()
    if a.action == "list":
        note("\n".join(registry.list_environments(root)) or f"no environments under {root / 'envs'}")
        return 0
    if not a.path:
        raise BadInput(f"env show: name one of: {', '.join(registry.list_environments(root))}")
    options = recipes.apply_overrides({}, a.set)
    environment = _constructed(a.path, root, options)
    note(f"{environment.name} {environment.version}\ntools:")
    note(
        "\n".join(
            f"  {s.usage:<40} {s.to_schema()['function']['description'].splitlines()[0]}" for s in environment.signatures.values()
        )
    )
    with preflight.environment(a.path, root, options) as pool:
        task = preflight.draw(pool, "train", 1, 0)[0]
        try:
            golden = pool.golden(task)
        except BadInput as e:
            golden, why = [], str(e)
        (played,) = scripts.play(pool, [scripts.Episode(task, tuple(golden))])
    if not played.results:
        raise BadInput(f"{a.path}: a task can't begin: {played.failure.detail if played.failure else ''}")
    note(f"a training task ({task.kind}):")
    for message in played.results[0]["messages"]:
        note(f"  {message['role']}: {message['content']}")
    if not golden:
        note(f"  no golden program: {why}")
        return 0
    for call, answer in zip(golden, played.results[1:], strict=False):
        note(f"  golden: {call}\n  tool: " + "\n".join(m["content"] for m in answer["messages"]))
    if played.failure:
        raise BadInput(f"{a.path}: the golden program can't be graded here: {played.failure.kind}: {played.failure.detail}")
    note(f"  reward {played.reward:g}" + ("" if played.success else ", without success"))
    return 0


def _constructed(path: str, root: Path, options: dict[str, Any]) -> Any:
    """The environment in this process, for its signatures. Raises BadInput, with file and line, where it can't be made."""
    from frontier_tune.sdk import registry

    try:
        return registry.load_environment(path, root, **options)
    except FrontierTuneError:
        raise
    except Exception as e:
        frame = traceback.extract_tb(e.__traceback__)[-1]
        raise BadInput(f"environment '{path}': {type(e).__name__}: {e} ({frame.filename}:{frame.lineno})") from e


def headroom(a: argparse.Namespace) -> int:
    from frontier_tune.cli import environments

    return environments.headroom(a)


def traces(a: argparse.Namespace) -> int:
    from frontier_tune.cli import traces as command

    return command.run(a)


def _run(which: str) -> Path:
    from frontier_tune.orchestration import run_dir

    return run_dir.find(Path.cwd(), which).root
