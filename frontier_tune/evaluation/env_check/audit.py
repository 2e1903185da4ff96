"""``check``: play the whole audit of an environment and collect its findings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput, Failure, Task
from frontier_tune.evaluation.env_check import conduct, content, processes
from frontier_tune.evaluation.env_check import effects as watched
from frontier_tune.evaluation.env_check.agents import BLIND, GOLDEN, Agents
from frontier_tune.evaluation.env_check.report import Check, Report, short
from frontier_tune.evaluation.scripts import NOT_IMPLEMENTED, Episode, Played, Pool, Script, ask, play
from frontier_tune.sandbox import EnvironmentPool
from frontier_tune.sdk.recordings import NO_RECORDING
from frontier_tune.sdk.registry import environment_hash

DRAWN = 512  # tasks of each split whose hashes are compared
PATIENCE = 3  # episodes that may hang before the rest is left out
REPLAYED = 4  # tasks that every agent plays again in a second process
SPLITS = ("train", "heldout")

Note = Callable[[str], None]


@dataclass
class _Material:
    """What the audit has gathered. ``golden`` and ``canaries`` go by task hash; ``programs`` and ``others`` were played."""

    drawn: dict[str, list[Task]] = field(default_factory=dict)
    same: dict[str, bool] = field(default_factory=dict)
    declared: Mapping[str, Any] = field(default_factory=dict)
    golden: dict[str, Script] = field(default_factory=dict)
    canaries: dict[str, dict[str, Script]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    openings: list[Played] = field(default_factory=list)
    programs: list[Played] = field(default_factory=list)
    others: list[Played] = field(default_factory=list)
    speed: dict[str, float] = field(default_factory=dict)

    @property
    def played(self) -> list[Played]:
        return [*self.programs, *self.others]

    def of(self, split: str) -> list[Played]:
        """What the tasks of a split show: the golden program's episodes, or only the openings where there is none."""
        return [p for p in self.programs or self.openings if p.episode.task.split == split and p.results]


def check(
    path: str,
    root: str | Path = ".",
    options: Mapping[str, Any] | None = None,
    *,
    tasks: int = 16,
    seed: int = 0,
    timeout_s: float = 20.0,
    note: Note = lambda text: None,
) -> Report:
    """Audit the environment at ``path`` (as ``load_environment`` takes it) on ``tasks`` tasks of each split.

    ``timeout_s``: seconds that a single call may take. Raises BadInput where the environment can't be loaded.
    """
    if tasks < 2:
        raise BadInput(f"env check: {tasks} tasks show nothing; take at least 2")

    def new_pool() -> EnvironmentPool:
        return EnvironmentPool(path, root, dict(options or {}), step_timeout_s=timeout_s)

    with processes.marked() as mark:
        m = _Material()
        with new_pool() as pool:
            about = {"path": path, "name": pool.description["name"], "version": pool.description["version"]}
            about |= {"hash": environment_hash(path, root), "options": dict(options or {})}
            about |= {"tasks": tasks, "seed": seed, "timeout_s": timeout_s}
            note("gymnasium's checker, task sets")
            checks = [_gymnasium(ask(pool, "examine", [{"what": "gymnasium"}])[0]), *_draw(pool, m, tasks, seed)]
            if any(c.name == "tasks" and c.verdict == "fail" for c in checks):
                return Report(about, tuple(checks), {}, {})
            agents = _play(pool, m, tasks, seed, note)
        after_timeout = processes.survivors(mark)
        processes.kill(after_timeout)
        checks += _judge(m, agents, timeout_s)
        note("again in a second process, then under watch")
        with new_pool() as pool:
            checks += [_replay(pool, m), _watch(pool, m)]  # last: what is watched leaves a hook in its process
        note("killing workers")
        reference = next((p for p in sorted(m.played, key=lambda p: (p.episode.agent != GOLDEN, -p.turns)) if p.graded), None)
        counts, outlived = processes.left_behind(new_pool, mark, reference.episode if reference else None)
        checks.append(processes.processes(counts, outlived, after_timeout))
        processes.kill(outlived)
        checks.append(processes.faults(new_pool, mark, reference))  # last: what it kills may leave anything behind
        checks.append(_speed(m.speed))
    return Report(about, tuple(checks), conduct.score(m.played), m.speed)


def _gymnasium(found: dict[str, Any] | Failure) -> Check:
    mend = "Override neither reset nor step; set all state up in begin, and draw from self.np_random alone."
    if isinstance(found, Failure):
        return Check("gymnasium", "fail", f"gymnasium's checker could not finish: {short(found.detail)}", mend)
    for verdict, findings in (("fail", found["errors"]), ("warn", found["warnings"])):
        if findings:
            return Check("gymnasium", verdict, f"gymnasium's checker: {short(findings[0])}", mend, found)  # type: ignore[arg-type]
    return Check("gymnasium", "pass", "gymnasium's own environment checker finds nothing.", "", found)


def _draw(pool: Pool, m: _Material, wanted: int, seed: int) -> list[Check]:
    """Draw tasks into ``m.drawn``; a generator that can't give as many as are compared is asked for as many as are played."""
    for split in SPLITS:
        found: dict[str, Any] | Failure = {}
        for n in (max(DRAWN, wanted), wanted):
            found = ask(pool, "examine", [{"what": "tasks", "split": split, "n": n, "seed": seed}])[0]
            if not isinstance(found, Failure):
                break
        if isinstance(found, Failure):
            evidence = f"tasks('{split}', {wanted}, seed={seed}) fails: {short(found.detail)}"
            return [Check("tasks", "fail", evidence, "Mend the task generator; nothing else can be checked without tasks.")]
        m.drawn[split], m.same[split] = [Task(**t) for t in found["tasks"]], found["same"]
    return [content.tasks(m.drawn, m.same, wanted), content.leakage(m.drawn)]


def _play(pool: EnvironmentPool, m: _Material, n: int, seed: int, note: Note) -> Agents:
    """Golden programs on both splits' tasks, every other agent on the held-out ones."""
    tasks = [t for split in SPLITS for t in m.drawn[split][:n]]
    payloads = [{"task": t.to_json()} for t in tasks]
    found = ask(pool, "examine", [{"what": "declared"}])[0]
    m.declared = {} if isinstance(found, Failure) else found
    for task, answer in zip(tasks, ask(pool, "golden", payloads), strict=True):
        if not isinstance(answer, Failure):
            m.golden[task.hash] = tuple(answer["calls"])
        elif answer.kind != NOT_IMPLEMENTED:
            m.problems.setdefault("golden", f"{answer.kind}: {answer.detail}")
    for task, answer in zip(tasks, ask(pool, "canaries", payloads), strict=True):
        if not isinstance(answer, Failure):
            m.canaries[task.hash] = {name: tuple(calls) for name, calls in answer["scripts"].items()}
        elif answer.kind != NOT_IMPLEMENTED:
            m.problems.setdefault("canaries", f"{answer.kind}: {answer.detail}")
    note(f"golden programs on {len(tasks)} tasks")
    m.openings = play(pool, [Episode(t, (), "opening") for t in tasks], patience=PATIENCE)
    started = time.monotonic()
    episodes = [Episode(t, m.golden[t.hash], GOLDEN) for t in tasks if t.hash in m.golden]
    m.programs = play(pool, episodes, patience=PATIENCE)
    _clock(m, m.programs, time.monotonic() - started)
    heldout = m.drawn["heldout"][:n]
    agents = Agents(pool.description["schemas"], m.golden, heldout, pool.description["limits"]["turns"], seed)
    prompts = {p.episode.task.hash: p.prompt for p in m.openings}
    others = list(agents.episodes(prompts, m.canaries))
    note(f"{len(others)} episodes of agents that cheat, guess and err")
    started = time.monotonic()
    blind = [e for e in others if e.agent.startswith(BLIND)]
    for group in ([e for e in others if not e.agent.startswith(BLIND)], blind):  # wild calls that hang stop their like alone
        m.others += play(pool, group, patience=PATIENCE)
    if not m.programs:
        _clock(m, m.others, time.monotonic() - started)
    return agents


def _clock(m: _Material, played: Sequence[Played], seconds: float) -> None:
    graded = [p for p in played if p.graded]
    if graded and seconds > 0:
        m.speed = {"steps_per_s": sum(p.turns for p in graded) / seconds, "episodes_per_s": len(graded) / seconds}


def _judge(m: _Material, agents: Agents, timeout_s: float) -> list[Check]:
    openings = [p for p in m.openings if p.results]
    scores = conduct.score(m.others)
    cheats = conduct.cheats(m.others)
    if "canaries" in m.problems:
        evidence = f"canary_scripts of a task fails: {short(m.problems['canaries'])}"
        cheats = Check("cheats", "fail", evidence, "Mend canary_scripts(task).")
    return [
        content.near_duplicates(m.of("train"), m.of("heldout")),
        content.prompt_answer([p for p in m.programs if p.results], agents, bool(m.declared.get("answer_in_prompt"))),
        content.prompt_grader(openings, m.declared.get("graders", ())),
        conduct.oracle(m.programs, len(m.openings), m.problems.get("golden", "")),
        cheats,
        conduct.guessing(scores),
        conduct.reward(m.played),
        conduct.components(m.played),
        conduct.robustness([*m.openings, *m.played]),
        conduct.time_outs([*m.openings, *m.played], timeout_s),
    ]


def _watch(pool: EnvironmentPool, m: _Material) -> Check:
    """Some episodes of every agent again, call by call under watch; those that hung or broke something are left out."""
    episodes = watched.chosen([p for p in m.played if p.graded or (p.failure and p.failure.kind == NO_RECORDING)])
    chunks = [episodes[i : i + watched.AT_ONCE] for i in range(0, len(episodes), watched.AT_ONCE)]
    found = ask(pool, "examine", [{"what": "effects", "episodes": chunk} for chunk in chunks])
    return watched.effects(pool.description["effects"], found)


def _replay(pool: Pool, m: _Material) -> Check:
    """Some tasks' episodes of every agent, the last first, in a fresh process."""
    of_agent: dict[str, int] = {}
    chosen = []
    for p in m.played:
        of_agent[p.episode.agent] = of_agent.get(p.episode.agent, 0) + 1
        if p.graded and of_agent[p.episode.agent] <= REPLAYED:
            chosen.append(p)
    again = play(pool, [p.episode for p in reversed(chosen)], patience=PATIENCE)
    return conduct.determinism(chosen, again[::-1])


def _speed(speed: Mapping[str, float]) -> Check:
    if not speed:
        return Check("speed", "warn", "No episode was graded whose speed could be told.", "See the other checks.")
    evidence = f"{speed['steps_per_s']:.0f} steps/s and {speed['episodes_per_s']:.1f} graded episodes/s with one worker process."
    return Check("speed", "pass", evidence, "", dict(speed))
