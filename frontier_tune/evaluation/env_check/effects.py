"""The check of what tools touch: production stays as it is, mocks have recordings, nothing else leaves the episode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from frontier_tune.contracts import Failure
from frontier_tune.evaluation.env_check.report import Check, short, shown
from frontier_tune.evaluation.scripts import Played

WATCHED = 4  # episodes of every agent that are played again under watch
AT_ONCE = 8  # episodes of one operation, which has the time of one call
_NAME = "effects"


def chosen(played: Sequence[Played]) -> list[dict[str, Any]]:
    """The episodes to watch: a few of every agent, so that wild calls and cheating ones are among them."""
    of_agent: Counter[str] = Counter()
    episodes = []
    for p in played:
        of_agent[p.episode.agent] += 1
        if of_agent[p.episode.agent] <= WATCHED:
            episodes.append({"task": p.episode.task.to_json(), "script": list(p.episode.script)})
    return episodes


def effects(declared: Mapping[str, str], answers: Sequence[Mapping[str, Any] | Failure]) -> Check:
    """Judge what ``sdk.examine.effects`` saw, answer by answer. ``declared``: effects by tool."""
    found: dict[str, Any] = {"reached": [], "outside": [], "unrecorded": []}
    called: Counter[str] = Counter()
    for answer in answers:
        if isinstance(answer, Failure):
            return Check(_NAME, "fail", f"Watching the tools fails: {short(answer.detail)}", "See the other checks.")
        for key in ("reached", "outside", "unrecorded"):
            found[key] += answer[key]
        called.update(answer["called"])
    found["called"] = dict(called)
    if found["reached"]:
        at = found["reached"][0]
        evidence = f"'{at['place']}' ({at['effect']}) changed production: the store '{at['store']}' is no longer what it was."
        mend = "Write through self.attach_store(...) alone; declare a tool that has to write to production effect='real'."
        return Check(_NAME, "fail", evidence, mend, found)
    if found["unrecorded"]:
        evidence = f"A mock has no answer: {short(found['unrecorded'][0]['detail'])}"
        mend = 'Record the golden program\'s calls with sdk.recordings.record; write "otherwise" for calls nobody recorded.'
        return Check(_NAME, "fail", evidence, mend, found)
    outside = [o for o in found["outside"] if o["effect"] != "real"]
    if outside:
        first = next((o for o in outside if o["effect"] == "virtual"), outside[0])
        evidence = f"'{first['place']}' ({first['effect']}) leaves the episode: {short(first['event'], 100)}"
        mend = "Keep files in the temporary directory, records in a store; declare what reaches others effect='real'."
        return Check(_NAME, "fail" if first["effect"] == "virtual" else "warn", evidence, mend, found)
    real = [name for name, effect in declared.items() if effect == "real"]
    if real:
        evidence = f"{shown(real)} would write to production; the audit never lets them, so what they do was not seen."
        mend = "Declare them virtual, and let a class for production declare them real."
        return Check(_NAME, "warn", evidence, mend, found)
    counts = Counter(declared.values())
    kinds = ", ".join(f"{counts[e]} {e}" for e in ("own", "virtual", "mock") if counts[e])
    evidence = f"{sum(found['called'].values())} calls of {len(declared)} tools ({kinds}) touched nothing but their episode."
    return Check(_NAME, "pass", evidence, "", found)
