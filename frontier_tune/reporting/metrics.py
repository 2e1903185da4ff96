"""Where a step's metrics go: metrics.jsonl always, W&B and TensorBoard where asked for. Keys: docs/run-directory.md."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from frontier_tune.contracts import BadInput

FILE = "metrics.jsonl"


class Sink(Protocol):
    """Takes one row (a JSON object with ``step``) at a time."""

    def log(self, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` as JSON can hold it: numbers that are not finite become null and their dotted keys go to ``nonfinite``."""
    lost: list[str] = []

    def clean(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {str(k): clean(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [clean(v, f"{key}.{i}") for i, v in enumerate(value)]
        if hasattr(value, "item"):  # a scalar of numpy or torch
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            lost.append(key)
            return None
        return value

    out: dict[str, Any] = clean(row, "")
    if lost:
        out["nonfinite"] = sorted({*out.get("nonfinite", []), *lost})
    return out


class JsonlSink:
    """Appends one line a row and flushes it to the disk. Opening removes half a line that a crash left at the end."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            data = path.read_bytes()
            if data and not data.endswith(b"\n"):
                with path.open("r+b") as f:
                    f.truncate(data.rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8")

    def log(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every row with its step, as written."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, KeyError, TypeError) as e:
            if number == len(lines):  # no newline after it: the writer was cut off
                return
            raise BadInput(f"{path}:{number}: not a metrics row with a 'step' ({e}); the file was damaged") from None
        yield step, row


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl in order of step; of a step that was written twice (resume) the last.

    Half a last line is ignored; a broken line before it is damage, and raises BadInput with its number.
    """
    by_step = {step: row for step, row in _rows(path) if "stage" not in row}  # those are before the first step: ``stages``
    return [by_step[s] for s in sorted(by_step)]


def stages(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Updates of supervised stages before the first step, by stage, in the order they were made in. Errors as of ``read``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _, row in _rows(path):
        if "stage" in row:
            found.setdefault(row["stage"], []).append(row)
    return found


def tokens(row: Mapping[str, Any]) -> int:
    """All tokens that a step sampled, as budgets count them: general tasks, more rounds and what was thrown away included."""
    keys = ("tokens_sampled", "rehearsal_tokens", "dynamic_tokens", "retried_tokens")
    return sum(int(row.get(key) or 0) for key in keys) + int((row.get("overlap") or {}).get("wasted_tokens") or 0)


def flatten(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a row under a ``/``-joined name, for trackers that know flat scalars alone."""
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}/")
        elif isinstance(value, list | tuple) and len(value) == 2 and key.endswith("ci95"):
            yield from flatten({"low": value[0], "high": value[1]}, f"{name}/")
        elif isinstance(value, int | float):
            yield name, float(value)


class WandbSink:
    """A W&B run inside the run directory. ``offline`` (the default of recipes) writes files and opens no connection.

    Console capture, code, git, requirements and machine metadata stay out of the run in both modes.
    """

    def __init__(self, run_dir: Path, project: str, mode: Literal["offline", "online"], config: Mapping[str, Any]) -> None:
        home = run_dir / "wandb"
        home.mkdir(parents=True, exist_ok=True)
        fixed = {
            "WANDB_DIR": run_dir,
            "WANDB_CONFIG_DIR": home,
            "WANDB_CACHE_DIR": home,
            "WANDB_DATA_DIR": home,
            "WANDB_SILENT": "true",
        }
        if mode == "offline":
            fixed |= {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
        os.environ.update({k: str(v) for k, v in fixed.items()})
        try:
            import wandb
        except ImportError:
            raise BadInput("tracking.wandb: wandb is not installed; 'pip install wandb' or set tracking.wandb=off") from None
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_save_requirements=False,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        self._run = wandb.init(
            project=project,
            name=run_dir.name,
            dir=str(run_dir),
            mode=mode,
            config=dict(config),
            settings=settings,
            reinit="finish_previous",
        )

    def log(self, row: Mapping[str, Any]) -> None:
        self._run.log(dict(flatten(row)), step=int(row["step"]))

    def close(self) -> None:
        self._run.finish()


class TensorBoardSink:
    """Scalars for TensorBoard, where it is installed (``available()``)."""

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory))

    @staticmethod
    def available() -> bool:
        from importlib.util import find_spec

        return find_spec("tensorboard") is not None

    def log(self, row: Mapping[str, Any]) -> None:
        for name, value in flatten(row):
            self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        self._writer.close()


class Sinks:
    """Several sinks as one. ``open`` gives a run its own: JSONL, and what ``tracking`` asks for."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = list(sinks)

    @classmethod
    def open(
        cls, run_dir: Path, *, wandb: str = "off", project: str = "frontier-tune", config: Mapping[str, Any] | None = None
    ) -> Sinks:
        sinks: list[Sink] = [JsonlSink(run_dir / FILE)]
        if wandb != "off":
            sinks.append(WandbSink(run_dir, project, "online" if wandb == "online" else "offline", config or {}))
        if TensorBoardSink.available():
            sinks.append(TensorBoardSink(run_dir / "tensorboard"))
        return cls(sinks)

    def log(self, row: Mapping[str, Any]) -> None:
        for sink in self.sinks:
            sink.log(row)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
