"""Deaths are counted against a budget, mended in between, and waited after; status tells what happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import LimitReached
from frontier_tune.orchestration import limits
from frontier_tune.orchestration import status as statuses
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.orchestration.events import Events, began, read
from frontier_tune.orchestration.handle import ActorDied, Wedged
from frontier_tune.orchestration.ledger import Ledger
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.orchestration.status import Status
from frontier_tune.orchestration.supervise import Supervisor
from tests.orchestration.test_batch import SPECS, played


def supervisor(tmp_path: Path, **limits: float) -> tuple[Supervisor, list[str]]:
    said: list[str] = []
    found = recipes.parse({"reliability": {"backoff_s": 0, **limits}})
    return Supervisor(found.reliability, Events(tmp_path / "events.jsonl"), said.append, lambda: None), said


def test_work_goes_on_after_each_death_until_it_is_done(tmp_path: Path) -> None:
    watch, said = supervisor(tmp_path)
    mended: list[str] = []

    def work(tries: int) -> int:
        if tries < 2:
            raise ActorDied.of("sampler", f"death {tries}")
        return tries

    assert watch.run(work, lambda e: mended.append(e.role)) == 2
    assert mended == ["sampler"] * 2 and watch.restarts == 2
    assert said == ["death 0; starting another (1 of at most 5)", "death 1; starting another (2 of at most 5)"]
    assert [(e["event"], e["role"]) for e in read(tmp_path / "events.jsonl")] == [("died", "sampler")] * 2


def test_a_death_while_mending_counts_too_and_the_budget_ends_it(tmp_path: Path) -> None:
    watch, _ = supervisor(tmp_path, restarts=2)

    def dies(*_: object) -> None:
        raise Wedged("it hangs")

    with pytest.raises(LimitReached, match="it hangs\n2 processes were replaced before, reliability.restarts") as e:
        watch.run(dies, dies)
    assert e.value.exit_code == 4 and watch.restarts == 2


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"max_cost": 2.0, "rates": {"hour": 3.0}}, "2.25 USD spent at run.rates, run.max_cost is 2"),
        ({"max_cost": 2.0, "rates": {"million_tokens": 1.0, "currency": "EUR"}}, "4.00 EUR spent"),
        ({"max_cost": 9.0, "rates": {"hour": 3.0}}, None),
        ({"max_tokens": 4_000_000}, "4,000,000 tokens"),
        ({"max_hours": 0.75}, "0.75 h"),
    ],
)
def test_limits(run: dict[str, object], words: str | None) -> None:
    found = limits.used_up(recipes.parse({"run": run}), 4_000_000, 0.75 * 3600)
    assert found is None if words is None else words in str(found)


def test_groups_lost_to_failures_are_limited() -> None:
    recipe = recipes.parse({"reliability": {"max_dropped_groups": 3}})
    assert limits.used_up(recipe, 0, 0.0, 3) is None
    assert "4 groups lost" in str(limits.used_up(recipe, 0, 0.0, 4))


def directory(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "r")
    run.root.mkdir()
    run.write_recipe(recipes.parse({"run": {"steps": 10, "rates": {"hour": 36}}, "algorithm": {"groups_per_step": 2}}))
    rows = [{"step": n, "seconds": 50.0, "tokens_sampled": 1000, "success": n / 10, "retried": 1} for n in (1, 2)]
    run.metrics.write_text("".join(json.dumps(r) + "\n" for r in rows))
    book = Ledger.open(run.ledger)
    for step in (0, 1):
        episodes = [played(type(s)(s.task, s.group, s.member, s.seed, step=step)) for s in SPECS]
        book.issue([t.spec for t in episodes])
        book.finish(episodes)
        book.settle(step + 1, step + 2, episodes, episodes)
    return run


def test_status_of_a_run_that_died(tmp_path: Path) -> None:
    run = directory(tmp_path)
    assert began(run.events) is None
    Events(run.events).log("started", step=0)
    first = began(run.events)
    Events(run.events).log("resumed", step=2)
    assert first and began(run.events) == first == read(run.events)[0]["time"]
    Status(run.status, recipes.load(run.recipe_file)).phase("learning", LoopState(step=2, tokens_sampled=2000, seconds=100.0))
    found = statuses.gather(run)
    assert (found["state"], found["step"], found["steps"], found["success"]) == ("dead", 2, 10, 0.2)
    assert found["cost"] == pytest.approx(1.0) and found["eta_seconds"] == 400 and found["retried"] == 2
    assert found["ledger"]["trained"] == 4 and not found["ledger"]["problems"]
    text = statuses.describe(json.loads(json.dumps(found)))
    assert "4 groups issued, 4 trained; the chain verifies" in text and "tune --resume" in text and "1.00 USD" in text


def test_status_of_a_run_that_lives(tmp_path: Path) -> None:
    run = directory(tmp_path)
    status = Status(run.status, recipes.load(run.recipe_file))
    status.phase("sampling", LoopState(step=2))
    status.beat({"episodes": 7, "slowest": [{"task": "abc", "seconds": 61.0, "turns": 3, "where": "environment"}]})
    code = "from pathlib import Path; from frontier_tune.orchestration.run_dir import RunDir; "
    code += f"r = RunDir(Path({str(run.root)!r})).lock()"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; print('locked', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == b"locked\n"
        found = statuses.gather(run)
        assert (found["state"], found["pid"], found["phase"]) == ("live", holder.pid, "sampling")
        assert "task abc: 1:01, 3 turns, in the environment" in statuses.describe(found)
        holder.kill()
    assert statuses.gather(run)["state"] == "dead"


def test_status_tells_of_supervised_stages_and_of_all_tokens(tmp_path: Path) -> None:
    run = directory(tmp_path)
    stage = [{"stage": "sft", "step": 0, "update": n, "loss": 3.0 / n} for n in (1, 2)]
    spent = {"step": 3, "tokens_sampled": 10, "rehearsal_tokens": 5, "retried_tokens": 2, "overlap": {"wasted_tokens": 1}}
    run.metrics.write_text("".join(json.dumps(r) + "\n" for r in [*stage, spent]))
    found = statuses.gather(run)
    assert found["warm_start"] == [{"stage": "sft", "updates": 2, "loss": [3.0, 1.5]}] and found["tokens_sampled"] == 18
    assert "warm start sft, 2 updates, loss 3.000 to 1.500" in statuses.describe(found)


def test_a_tampered_ledger_shows(tmp_path: Path) -> None:
    run = directory(tmp_path)
    run.ledger.write_text(run.ledger.read_text().replace('"step":1', '"step":3', 1))
    assert "was changed or removed" in statuses.describe(statuses.gather(run))
