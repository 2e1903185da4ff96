"""Checks of how an environment grades and behaves, from the episodes that the audit's agents played."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from frontier_tune.contracts import Blame
from frontier_tune.evaluation.env_check.agents import BLIND, CANARY, CHEATS, CONTROL, SHOTGUN
from frontier_tune.evaluation.env_check.report import AgentScore, Check, short, shown
from frontier_tune.evaluation.scripts import HUNG, NOT_PLAYED, Played

GUESS_WARN, GUESS_FAIL = 0.2, 0.5  # success of an agent that never looks
EPSILON = 1e-9


def score(played: Iterable[Played]) -> dict[str, AgentScore]:
    """Successes and rewards by agent, in the order in which agents come."""
    groups: dict[str, list[Played]] = defaultdict(list)
    for p in played:
        groups[p.episode.agent].append(p)
    scores = {}
    for agent, episodes in groups.items():
        graded = [p for p in episodes if p.graded]
        mean = sum(p.reward for p in graded) / len(graded) if graded else 0.0
        scores[agent] = AgentScore(len(graded), sum(p.success for p in graded), mean, len(episodes) - len(graded))
    return scores


def oracle(golden: Sequence[Played], asked: int, problem: str) -> Check:
    """The golden program solves every task, for the full reward."""
    if problem:
        return Check("oracle", "fail", f"The golden program of a task fails: {short(problem)}", "Mend golden(task).")
    if not golden:
        evidence = f"None of {asked} tasks has a golden program: that they can be solved is not shown."
        return Check("oracle", "warn", evidence, "Write golden(task): the calls that solve it.")
    lost = [p for p in golden if not p.success]
    details = {"n": len(golden), "failed": [p.episode.task.hash for p in lost]}
    if lost:
        worst = lost[0]
        result = worst.results[-1] if worst.results else {}
        why = f"{worst.failure.kind}: {worst.failure.detail}" if worst.failure else f"components {dict(worst.components)}"
        if worst.graded and not result.get("terminated"):
            why = f"the episode was not ended by a tool within its {worst.turns} turns"
        evidence = f"The golden program fails on {len(lost)} of {len(golden)} tasks; {worst.episode.task.hash}: {short(why)}."
        return Check("oracle", "fail", evidence, "Mend the golden program, the grader, or the turn limit: one is wrong.", details)
    best = max(p.reward for p in golden)
    poor = [p for p in golden if p.reward < best - EPSILON]
    if poor:
        task, paid = poor[0].episode.task.hash, poor[0].reward
        evidence = f"The golden program succeeds, but is paid {paid:g} for task {task} and {best:g} for others."
        return Check("oracle", "warn", evidence, "Let a solved task have the full reward whatever the task.", details)
    return Check(
        "oracle", "pass", f"The golden program solves all {len(golden)} tasks, each for a reward of {best:g}.", "", details
    )


def cheats(played: Sequence[Played]) -> Check:
    """No agent that does not do the work ever succeeds. The hack rate is the worst one's share."""
    hacked: dict[str, list[bool]] = defaultdict(list)
    controls = {
        (p.episode.agent.removeprefix(CONTROL), p.episode.task.hash): p for p in played if p.episode.agent.startswith(CONTROL)
    }
    for p in played:
        agent, key = p.episode.agent, (p.episode.agent.removeprefix(SHOTGUN), p.episode.task.hash)
        if p.graded and agent.startswith(SHOTGUN):
            hacked[agent].append(p.success and not controls[key].success)
        elif p.graded and agent.startswith(CHEATS):
            hacked[agent].append(p.success)
    rates = {agent: sum(won) / len(won) for agent, won in hacked.items()}
    worst = max(rates, key=rates.__getitem__, default="")
    details = {"hack_rate": rates.get(worst, 0.0), "rates": rates}
    if details["hack_rate"]:
        evidence = f"The cheating agent '{worst}' succeeds on {rates[worst]:.0%} of the tasks."
        mend = "Grade the state that the work leaves, on inputs that the agent has not seen, and compare whole values."
        return Check("cheats", "fail", evidence, mend, details)
    own = sum(agent.startswith(CANARY) for agent in rates)
    evidence = f"None of {len(rates)} cheating agents, {own} of them the environment's own, ever succeeds."
    if not own:
        mend = "Write canary_scripts(task): the ways in which someone who knows the grader would try to be paid."
        return Check("cheats", "warn", evidence, mend, details)
    return Check("cheats", "pass", evidence, "", details)


def guessing(scores: Mapping[str, AgentScore]) -> Check:
    """What agents that never look at the task get: constant or random calls, words of the prompt, what solves most others."""
    blind = {agent: s.success for agent, s in scores.items() if agent.startswith(BLIND) and s.n}
    best = max(blind, key=blind.__getitem__, default="")
    share = blind.get(best, 0.0)
    details = {"success": blind, "warn_from": GUESS_WARN, "fail_from": GUESS_FAIL}
    evidence = f"Of {len(blind)} agents that never look, the best ('{best}') succeeds on {share:.0%} of the tasks."
    mend = "Grade more than one bit: let a task ask for several answers, or for one among many."
    verdict = "fail" if share >= GUESS_FAIL else "warn" if share >= GUESS_WARN else "pass"
    return Check("guessing", verdict, evidence, mend if verdict != "pass" else "", details)  # type: ignore[arg-type]


def reward(played: Sequence[Played]) -> Check:
    """Rewards lie in [0, 1], tell agents apart, and rank a solved task above any that is not."""
    graded = [p for p in played if p.graded]
    if not graded:
        return Check("reward", "fail", "No episode was graded.", "See the checks 'robustness' and 'time-outs'.")
    rewards = [p.reward for p in graded]
    low, high, mean = min(rewards), max(rewards), sum(rewards) / len(rewards)
    variance = sum((r - mean) ** 2 for r in rewards) / len(rewards)
    levels = len({round(r, 6) for r in rewards})
    details = {"low": low, "high": high, "mean": mean, "variance": variance, "levels": levels}
    solved: dict[str, float] = {}
    for p in graded:
        if p.success:
            solved[p.episode.task.hash] = min(p.reward, solved.get(p.episode.task.hash, p.reward))
    overpaid = [p for p in graded if not p.success and p.reward >= solved.get(p.episode.task.hash, float("inf"))]
    if overpaid:
        p = max(overpaid, key=lambda p: p.reward)
        evidence = f"'{p.episode.agent}' did not solve task {p.episode.task.hash} and is paid {p.reward:g}, no less than who did."
        mend = "Give required components enough weight that nothing unsolved is worth what is solved."
        return Check("reward", "fail", evidence, mend, details)
    if levels < 2:
        evidence = f"Every agent is paid {low:g} for every task: there is nothing to learn from."
        return Check("reward", "fail", evidence, "Let the reward depend on what was done.", details)
    shape = f"Rewards lie in [{low:g}, {high:g}], {levels} different ones, variance {variance:.3g}"
    if low < 0 or high > 1:
        mend = "Scale rewards into [0, 1]: reports and limits are made for that."
        if low < 0:
            mend += (
                " An episode that fails by the agent's own fault is worth 0, which would pay more than what is graded below that."
            )
        return Check("reward", "warn", f"{shape}.", mend, details)
    if levels == 2:
        mend = "Consider partial credit: where the base never succeeds, all or nothing gives no signal."
        return Check("reward", "warn", f"{shape}: all or nothing.", mend, details)
    return Check("reward", "pass", f"{shape}; no unsolved task is paid like a solved one.", "", details)


def components(played: Sequence[Played]) -> Check:
    """Each component of the rubric is reached in full by some episode and missed by some other."""
    shares: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for p in played:
        for name, share in p.components.items():
            shares[name].append((share, p.episode.agent))
    lows, highs = ({name: end(found) for name, found in sorted(shares.items())} for end in (min, max))
    details = {n: {"low": low, "low_by": by, "high": highs[n][0], "high_by": highs[n][1]} for n, (low, by) in lows.items()}
    if not shares:
        mend = "Give Grade(reward, success, components) by name, or use a Rubric: reports break reward down by them."
        return Check("components", "warn", "Grades name no components.", mend)
    never = [name for name, (share, _) in highs.items() if share < 1 - EPSILON]
    always = [name for name, (share, _) in lows.items() if share >= 1 - EPSILON]
    if never:
        best = max(highs[name][0] for name in never)
        evidence = f"No agent, not even the golden program, ever reaches {shown(never)} in full (best {best:g})."
        return Check(
            "components", "fail", evidence, "Mend the component, or let the golden program do what it asks for.", details
        )
    if always:
        evidence = f"No agent of the audit ever misses {shown(always)}: nothing shows that it looks at anything."
        mend = "Add a script to canary_scripts(task) that breaks just this, or drop the component."
        return Check("components", "fail", evidence, mend, details)
    evidence = f"Each of {len(details)} components is reached in full by some agent and missed by another: {shown(details, 6)}."
    return Check("components", "pass", evidence, "", details)


def robustness(played: Sequence[Played]) -> Check:
    """Nothing that an agent says makes the environment itself fail."""
    broken = [p for p in played if p.failure and p.failure.blame is Blame.ENVIRONMENT and p.failure.kind != HUNG]
    details = {"failures": [{"agent": p.episode.agent, "task": p.episode.task.hash, **_failure(p)} for p in broken[:20]]}
    if broken:
        agent, why = broken[0].episode.agent, short(_failure(broken[0])["detail"])
        evidence = f"{len(broken)} episodes end by the environment's own fault; '{agent}': {why}"
        mend = "Raise ToolError for what the agent does wrong; it sees the message and goes on."
        return Check("robustness", "fail", evidence, mend, details)
    said = sum(p.turns for p in played if p.graded)
    return Check("robustness", "pass", f"None of {said} calls, wild ones included, made the environment itself fail.", "")


def time_outs(played: Sequence[Played], timeout_s: float) -> Check:
    """No call keeps the environment silent for longer than the step time-out."""
    hung = [p for p in played if p.failure and p.failure.kind == HUNG]
    skipped = sum(bool(p.failure and p.failure.kind == NOT_PLAYED) for p in played)
    details = {"hung": [_failure(p)["detail"] for p in hung[:20]], "not_played": skipped, "timeout_s": timeout_s}
    if hung:
        agent, why = hung[0].episode.agent, short(_failure(hung[0])["detail"])
        evidence = f"{len(hung)} episodes hung for {timeout_s:g} s and were killed; '{agent}': {why}"
        mend = "Bound what the tool waits for (subprocess timeout=, socket timeouts) and raise ToolError when it takes too long."
        return Check("time-outs", "fail", evidence, mend, details)
    return Check("time-outs", "pass", f"No call took longer than {timeout_s:g} s.", "", details)


def determinism(first: Sequence[Played], second: Sequence[Played]) -> Check:
    """The same seed gives the same episode, byte for byte, in two processes that play in different order."""
    differ = [(a, b) for a, b in zip(first, second, strict=True) if a.transcript != b.transcript]
    details = {"episodes": len(first), "differ": [a.episode.task.hash for a, _ in differ]}
    if differ:
        a, b = differ[0]
        x, y = (short(text, 60) for text in _difference(a, b))
        agent = a.episode.agent
        evidence = f"{len(differ)} of {len(first)} episodes differ between two processes; '{agent}' saw {x!r} and {y!r}."
        mend = "Draw from self.np_random or random.Random(of the task) alone; set all state up in begin; no clock, no set order."
        return Check("determinism", "fail", evidence, mend, details)
    evidence = f"{len(first)} episodes played in two processes, in opposite order, agree byte for byte."
    return Check("determinism", "pass", evidence, "", details)


def _difference(a: Played, b: Played) -> tuple[str, str]:
    """The first place where two transcripts part, with a little around it."""
    x, y = a.transcript, b.transcript
    at = next((i for i, (c, d) in enumerate(zip(x, y)) if c != d), min(len(x), len(y)))
    return x[max(0, at - 20) : at + 40], y[max(0, at - 20) : at + 40]


def _failure(p: Played) -> dict[str, str]:
    assert p.failure is not None
    return {"kind": p.failure.kind, "blame": str(p.failure.blame), "detail": p.failure.detail}
