"""report.html and learning-curve.png of a run, from its directory alone. One file, no external resource, light and dark."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2
import yaml

from frontier_tune.contracts import BadInput
from frontier_tune.reporting import episodes, metrics, plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE, CURVE = "report.html", "learning-curve.png"
T = TypeVar("T")


@dataclass
class Contents:
    """What could be read of a run. ``missing`` says for people what could not, and why."""

    run_dir: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    recipe_text: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] | None = None
    record_digest: str = ""
    adapter: dict[str, Any] | None = None
    model: dict[str, Any] | None = None  # in its place, where all weights were trained
    examples: list[episodes.Example] = field(default_factory=list)
    rollouts: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    warm_start: list[dict[str, Any]] = field(default_factory=list)

    def take(self, relative: str, read: Callable[[Path], T]) -> T | None:
        """``read`` of a file of the run, or None with a line in ``missing``."""
        path = self.run_dir / relative
        if not path.is_file():
            self.missing.append(f"{relative}: not there")
            return None
        try:
            return read(path)
        except (BadInput, ValueError, KeyError, TypeError, yaml.YAMLError, struct.error) as e:
            self.missing.append(f"{relative}: can't be read ({e})")
            return None


def gather(run_dir: Path) -> Contents:
    """Read a run directory. Raises BadInput where it is none; missing or broken parts are only noted."""
    if not (run_dir / "recipe.yaml").is_file() and not (run_dir / metrics.FILE).is_file():
        raise BadInput(f"{run_dir}: not a run directory (neither recipe.yaml nor {metrics.FILE} in it)")
    run = Contents(run_dir.resolve())
    run.rows = run.take(metrics.FILE, metrics.read) or []
    run.evaluation = run.take("evaluation.json", _evaluation)
    run.recipe_text = run.take("recipe.yaml", lambda p: p.read_text(encoding="utf-8")) or ""
    run.recipe = run.take("recipe.yaml", _mapping_of_yaml) or {}
    run.record = run.take("record.json", lambda p: dict(json.loads(p.read_bytes())))
    if run.record is not None:
        run.record_digest = hashlib.sha256((run_dir / "record.json").read_bytes()).hexdigest()
    if (run_dir / "model").is_dir():
        run.model = run.take("model/config.json", lambda p: _model(p.parent))
    else:
        run.adapter = run.take("adapter/adapter_config.json", lambda p: _adapter(p.parent))
    before = run.take("evaluation/base-greedy.jsonl", episodes.read)
    after = run.take("evaluation/tuned-greedy.jsonl", episodes.read)
    if before and after:
        run.examples = episodes.choose(before, after)
    if (run_dir / "warm_start.json").is_file():
        run.warm_start = run.take("warm_start.json", lambda p: list(json.loads(p.read_bytes())["stages"])) or []
    run.rollouts = sorted(p.name for p in (run_dir / "rollouts").glob("*.jsonl"))
    run.missing = list(dict.fromkeys(run.missing))
    return run


def _mapping_of_yaml(path: Path) -> dict[str, Any]:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError("not a mapping")
    return data


def _evaluation(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text(encoding="utf-8"))
    base, tuned = data["base"], data.get("tuned")
    for part in (base, tuned) if tuned else (base,):
        _ = part["success"], part["ci95"], part["by_kind"], part["n"], part["reward"]
    return dict(data)


def _adapter(directory: Path) -> dict[str, Any]:
    """Rank, targets and size of an adapter in PEFT's format, from its configuration and its safetensors header."""
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    weights = directory / "adapter_model.safetensors"
    tensors, parameters = _counts(weights)
    return {
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "modules": sorted(config.get("target_modules") or []),
        "parameters_targeted": sorted(config.get("target_parameters") or []),
        "modules_whole": sorted(config.get("modules_to_save") or []),
        "tensors": tensors,
        "parameters": parameters,
        "bytes": weights.stat().st_size,
    }


def _model(directory: Path) -> dict[str, Any]:
    """Type and size of a model in transformers' format."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    files = sorted(directory.glob("*.safetensors"))
    return {
        "dtype": config.get("dtype"),
        "files": [p.name for p in files],
        "parameters": sum(_counts(p)[1] for p in files),
        "bytes": sum(p.stat().st_size for p in files),
    }


def _counts(weights: Path) -> tuple[int, int]:
    """Tensors and numbers in a safetensors file, from its header."""
    with weights.open("rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    shapes = [t["shape"] for name, t in header.items() if name != "__metadata__"]
    return len(shapes), sum(math.prod(shape) for shape in shapes)


def kinds(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry a task kind for the table: base and tuned, either possibly None."""
    base = evaluation["base"]["by_kind"]
    tuned = (evaluation.get("tuned") or {"by_kind": {}})["by_kind"]
    return [{"kind": k, "base": base.get(k), "tuned": tuned.get(k)} for k in sorted({*base, *tuned})]


def limits(run: Contents) -> list[str]:
    """What this report does not show, from what was and was not measured."""
    found = [
        "Held-out tasks come from the same generator as training tasks: new seeds, workbooks and layouts, not new kinds of work. "
        "Real work may differ in ways that the generator does not know.",
        "The intervals cover the draw of tasks, not that of training: one run is one seed. Another seed gives another adapter.",
    ]
    if run.record is not None:
        found += _undocumented(run.record)
    e = run.evaluation
    if e is None:
        return [*found, "Nothing was evaluated on held-out tasks: the curves are of training tasks."]
    if e.get("tuned") and e["tuned"].get("success_sampled") is None:
        found.append("Success when sampling at temperature 1 was not measured; the figures are greedy decoding.")
    for name in ("base", "tuned"):
        part = e.get(name) or {}
        lost = part.get("n_submitted", part.get("n", 0)) - part.get("n", 0)
        if lost:
            found.append(
                f"{lost} of {part['n_submitted']} held-out episodes of the {name} were not graded (failures of environment or "
                f"infrastructure) and are left out; counted as failed they would give {percent(part['success_of_submitted'])}."
            )
    if e.get("general_after") is None:
        found.append("Whether the model forgot general skills was not measured after training.")
    if not e.get("canaries"):
        found.append("No canary agents were run: that the grader can't be gamed was not checked in this run.")
    return found


def _undocumented(record: Mapping[str, Any]) -> list[str]:
    """What the record does not know about the base's own training."""
    base: Mapping[str, Any] = next((d for d in _resolved(record) if d.get("name") == "base"), {})
    notes = base.get("annotations", {})
    told = [f"A data sheet of the base was refused: {why}" for why in notes.get("datasheets_refused", [])]
    return (
        told
        if notes.get("datasheets")
        else [*told, "The base came without valid data sheets: what it was trained on is not recorded."]
    )


def percent(share: float | None, digits: int = 1) -> str:
    """Never 0 or 100 % for what is not: 0.997 is not '100 %'."""
    return "–" if share is None else f"{_hundredths(share, digits)} %"


def _hundredths(share: float, digits: int) -> str:
    text = f"{100 * share:.{digits}f}"
    exact = float(text) not in (0.0, 100.0) or share in (0, 1) or digits == 3
    return text if exact else _hundredths(share, digits + 1)


def interval(ci: Any) -> str:
    return f"{_hundredths(ci[0], 0)}–{_hundredths(ci[1], 0)} %" if ci and None not in ci else ""


def p_value(p: float) -> str:
    return f"p = {p:.3f}" if p >= 0.001 else ("p < 0.001" if p >= 1e-6 else "p < 0.000001")


def seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 120 else (f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h")


def size(value: float) -> str:
    return f"{value / 1e6:.2f} MB" if value >= 1e5 else f"{value / 1e3:.1f} kB"


def render(run: Contents, curve: Figure | None) -> str:
    """The page, around the learning curve. Text of episodes, recipe and record is escaped: none puts markup into the report."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("frontier_tune.reporting", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": percent, "interval": interval, "p_value": p_value, "seconds": seconds, "size": size}
    return environment.get_template("report.html.j2").render(
        run=run,
        e=run.evaluation,
        kinds=kinds(run.evaluation) if run.evaluation else [],
        colours=plots.COLOURS,
        curve=plots.to_svg(curve, "curve") if curve else "",
        diagnostics=plots.to_svg(plots.diagnostics(run.rows), "diagnostics") if run.rows else "",
        rule=episodes.RULE,
        limits=limits(run),
        totals=_totals(run),
        dependencies=_dependencies(run.record or {}),
    )


def _totals(run: Contents) -> dict[str, Any]:
    """Steps, time and tokens: of the evaluation where it says so, else of the metrics."""
    counted = {
        "steps": len(run.rows),
        "seconds": sum(r.get("seconds") or 0.0 for r in run.rows),
        "tokens_sampled": sum(map(metrics.tokens, run.rows)),
    }
    return {**counted, **((run.evaluation or {}).get("train") or {})}


def _dependencies(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, digest, note) of what went into the run."""
    found = []
    for d in _resolved(record):
        digest = next(iter(d.get("digest", {}).values()), "")
        notes = d.get("annotations", {})
        note = ", ".join(
            str(x) for x in (d.get("uri", ""), notes.get("license", ""), "uncommitted changes" if notes.get("dirty") else "") if x
        )
        found.append((d["name"], digest, note))
    return found


def _resolved(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(record.get("predicate", {}).get("buildDefinition", {}).get("resolvedDependencies", []))


def write(run_dir: Path) -> Path:
    """Write report.html and learning-curve.png into ``run_dir``, each whole or not at all; returns the report's path."""
    run = gather(run_dir)
    curve = plots.learning_curve(run.rows, run.evaluation) if run.rows else None
    if curve:
        plots.save_png(curve, run_dir / CURVE)
    path = run_dir / FILE
    tmp = path.with_name(FILE + ".tmp")
    tmp.write_text(render(run, curve), encoding="utf-8")
    os.replace(tmp, path)
    return path
