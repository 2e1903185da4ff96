"""Checks of what an environment shows: its task sets, and its prompts beside the answers and the graders."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from frontier_tune.contracts import Task
from frontier_tune.evaluation.env_check.agents import Agents
from frontier_tune.evaluation.env_check.report import Check, short, shown
from frontier_tune.evaluation.scripts import Played

SHINGLE = 3  # words
SIMILAR = 0.8  # Jaccard similarity from which two tasks are near-duplicates
BOILERPLATE = 0.5  # shingles of more than this share of all tasks say nothing of any one
MANY_NEAR = 0.05  # share of held-out tasks with a near-duplicate in training from which the check fails
TOLD = 0.5  # an argument is told where its own prompts hold it this much more often than other tasks' prompts
LONG_ARGUMENT = 20  # characters; a formula, a query or a sentence, no name that a prompt has to mention
GRADER_LINE = 20  # characters of code without spaces; shorter lines are anybody's


def tasks(drawn: Mapping[str, Sequence[Task]], same: Mapping[str, bool], wanted: int) -> Check:
    """Enough distinct tasks of the right split, the same for the same arguments."""
    details = {split: len(found) for split, found in drawn.items()}
    for split, found in drawn.items():
        if not found:
            return Check(
                "tasks", "fail", f"tasks('{split}', ...) gives none.", "Return at least one task of each split.", details
            )
        wrong = next((t for t in found if t.split != split), None)
        if wrong:
            evidence = f"tasks('{split}', ...) gives task {wrong.hash} of split '{wrong.split}'."
            return Check(
                "tasks", "fail", evidence, f"Construct the tasks of '{split}' with Task(..., split='{split}', ...).", details
            )
        doubled = [h for h, n in Counter(t.hash for t in found).items() if n > 1]
        if doubled:
            evidence = f"Of {len(found)} {split} tasks {len(doubled)} occur more than once, first {doubled[0]}."
            return Check(
                "tasks", "fail", evidence, "Draw without replacement, or put what tells tasks apart into Task.data.", details
            )
        if not same[split]:
            evidence = f"tasks('{split}', ...) gave other tasks when asked again with the same arguments."
            return Check("tasks", "fail", evidence, "Draw from random.Random(seed) alone: no clock, no global state.", details)
    few = [f"{len(found)} {split}" for split, found in drawn.items() if len(found) < wanted]
    counted = f"{shown(f'{len(f)} {s}' for s, f in drawn.items())} tasks were drawn, all distinct, and the same when drawn again."
    if few:
        return Check("tasks", "warn", counted, f"Give at least {wanted} of each split, so that figures mean something.", details)
    return Check("tasks", "pass", counted, "", details)


def leakage(drawn: Mapping[str, Sequence[Task]]) -> Check:
    """No held-out task, by content, and no held-out layout family may train."""
    train, heldout = drawn.get("train", ()), drawn.get("heldout", ())
    trained, families = {t.hash for t in train}, {t.family for t in train if t.family}
    both = [t.hash for t in heldout if t.hash in trained]
    shared = sorted({t.family for t in heldout if t.family in families})
    details = {"shared_tasks": both, "shared_families": shared, "train": len(train), "heldout": len(heldout)}
    mend = "Split by something that content can't share, for example even seeds for training and odd ones held out."
    if both:
        evidence = f"{len(both)} of {len(heldout)} held-out tasks are training tasks by content hash: {shown(both)}."
        return Check("leakage", "fail", evidence, mend, details)
    if shared:
        evidence = f"Held-out tasks have layout families that also train: {shown(shared)}."
        return Check("leakage", "fail", evidence, "Keep some families for the held-out split alone.", details)
    return Check("leakage", "pass", f"None of {len(heldout)} held-out tasks is among {len(train)} training tasks.", "", details)


def near_duplicates(train: Sequence[Played], heldout: Sequence[Played]) -> Check:
    """Held-out tasks that show the agent almost what a training task shows it: Jaccard similarity of word shingles."""
    texts = [_shingles(p.text) for p in (*train, *heldout)]
    common = Counter(s for text in texts for s in text)
    told = {s for s, n in common.items() if n <= BOILERPLATE * len(texts)}
    mine = [text & told for text in texts]
    pairs = []
    for j, held in enumerate(heldout, len(train)):
        best, i = max((_similarity(i, j, mine, texts), i) for i in range(len(train))) if train else (0.0, 0)
        if best >= SIMILAR:
            pairs.append((round(best, 3), held.episode.task.hash, train[i].episode.task.hash))
    share = len(pairs) / len(heldout) if heldout else 0.0
    details = {"pairs": sorted(pairs, reverse=True)[:20], "share": share, "threshold": SIMILAR, "shingle_words": SHINGLE}
    if not pairs:
        evidence = f"No held-out task shows {SIMILAR:.0%} or more of what one of {len(train)} training tasks shows."
        return Check("near-duplicates", "pass", evidence, "", details)
    top = max(pairs)
    evidence = (
        f"{len(pairs)} of {len(heldout)} held-out tasks are near-duplicates of training tasks: {top[1]} is {top[0]:.0%} {top[2]}."
    )
    verdict = "fail" if share > MANY_NEAR else "warn"
    return Check("near-duplicates", verdict, evidence, "Draw the values that matter apart for the two splits.", details)  # type: ignore[arg-type]


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def _similarity(i: int, j: int, mine: Sequence[set[Any]], texts: Sequence[set[Any]]) -> float:
    a, b = mine[i], mine[j]
    if not a and not b:  # nothing but boilerplate in either
        a, b = texts[i], texts[j]
    return len(a & b) / len(a | b) if a | b else 1.0


def prompt_answer(golden: Sequence[Played], agents: Agents, declared: bool) -> Check:
    """Whether prompts give the golden answer away, beyond naming what is asked for and listing what may be chosen."""
    name = "prompt-answer"
    if not golden:
        return Check(name, "warn", "There is no golden program to compare the prompts with.", "Write golden(task).")
    told = [t for kind in sorted({p.episode.task.kind for p in golden}) for t in _told(kind, golden, agents)]
    details = {"told": told, "threshold": TOLD, "declared": declared}
    if not told:
        return Check(name, "pass", f"No prompt of {len(golden)} tells the golden answer.", "", details)
    first, example = told[0], short(told[0]["example"], 60)
    evidence = f"Prompts hold the answer: {first['argument']} of kind '{first['kind']}', for example {example!r}."
    if declared:
        return Check(name, "pass", f"The class declares that answers stand in prompts. {evidence}", "", details)
    mend = "Take the answer out of the prompt; where finding it there is the work, set answer_in_prompt = True on the class."
    return Check(name, "fail", evidence, mend, details)


def _told(kind: str, golden: Sequence[Played], agents: Agents) -> list[dict[str, Any]]:
    """What the prompts of one kind tell: the deciding call's whole answer, or one long argument of it."""
    rows = []
    for p in golden:
        found = agents.deciding(p.episode.script) if p.episode.task.kind == kind else None
        if found is not None:
            verb, arguments = found[1].name, {k: _text(v) for k, v in found[1].arguments.items() if v is not None}
            rows.append((p.prompt, {"verb": verb, **{f"{verb}.{k}": v for k, v in arguments.items()}}))
    if len(rows) < 2:  # nothing to compare with: a name that the prompt has to mention looks like an answer
        return []
    values: dict[str, set[str]] = defaultdict(set)
    for _, answer in rows:
        for key, value in answer.items():
            values[key].add(value)
    open_keys = [k for k in values if len(values[k]) > 1] or [k for k in values if k != "verb"]  # what has to be decided
    for signature in agents.signatures.values():
        for argument in signature.parameters:  # a prompt that lists what may be chosen tells nothing
            values[f"{signature.name}.{argument.name}"].update(map(_text, argument.choices))
    excess: dict[str, float] = {}
    for key in open_keys:
        mine = [(prompt, answer[key]) for prompt, answer in rows if key in answer]
        own = [_holds(prompt, value) for prompt, value in mine]
        cross = [_holds(prompt, value) for prompt, own_value in mine for value in values[key] if value != own_value]
        excess[key] = sum(own) / len(own) - (sum(cross) / len(cross) if cross else 0.0)
    long = [k for k in excess if excess[k] >= TOLD and max(map(len, values[k])) >= LONG_ARGUMENT]
    whole = bool(excess) and all(v >= TOLD for v in excess.values())
    keys = open_keys if whole else long
    return [{"kind": kind, "argument": k, "excess": round(excess[k], 3), "example": min(values[k])} for k in keys]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _holds(prompt: str, value: str) -> bool:
    """Whether ``value`` stands in the prompt as whole words, whatever the spacing and case."""
    prompt, value = (" ".join(t.casefold().split()) for t in (prompt, value))
    return bool(value) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", prompt) is not None


def prompt_grader(played: Sequence[Played], graders: Sequence[Mapping[str, str]]) -> Check:
    """Whether a prompt holds lines of the grader's code."""
    name = "prompt-grader"
    lines = {}
    for grader in graders:
        for line in grader["source"].splitlines():
            packed = "".join(line.split())
            if len(packed) >= GRADER_LINE and not packed.startswith(("#", '"', "'", "@", "def")):
                lines[packed] = (grader["name"], line.strip())
    for p in played:
        prompt = "".join(p.prompt.split())
        for packed, (where, line) in lines.items():
            if packed in prompt:
                evidence = f"The prompt of task {p.episode.task.hash} holds a line of {where}: {short(line, 80)}"
                return Check(name, "fail", evidence, "Say in the prompt what is wanted, not how it is computed that it was done.")
    evidence = f"No prompt of {len(played)} holds one of the {len(lines)} longer lines of {len(graders)} grader functions."
    return Check(name, "pass", evidence, "", {"lines": len(lines)})
