"""What an audit asks of an environment beyond playing it: gymnasium's own checker, unchecked tasks, declarations, grader sources.

Runs where the environment lives, in its worker process.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

from frontier_tune.contracts import BadInput, Task
from frontier_tune.sdk.env import WorkflowEnv
from frontier_tune.sdk.recordings import NO_RECORDING
from frontier_tune.sdk.records.store import RecordStore, store_digest
from frontier_tune.sdk.rubric import Rubric
from frontier_tune.sdk.watch import watching

New = Callable[[], WorkflowEnv]
MANY_RECORDS = 1000


def examine(new: New, what: str, **arguments: Any) -> dict[str, Any]:
    """``what``: "gymnasium", "tasks" (split, n, seed), "declared" or "effects" (episodes). ``new`` makes a fresh environment.

    The answer is JSON.
    """
    known: dict[str, Callable[..., dict[str, Any]]] = {
        "gymnasium": gymnasium,
        "tasks": tasks,
        "declared": declared,
        "effects": effects,
    }
    if what not in known:
        raise BadInput(f"examine: unknown '{what}'; known: {', '.join(known)}")
    return known[what](new, **arguments)


def gymnasium(new: New) -> dict[str, Any]:
    """``errors`` and ``warnings`` of gymnasium's environment checker, determinism of seeded resets and steps included."""
    from gymnasium.envs.registration import EnvSpec
    from gymnasium.utils.env_checker import check_env

    env = new()
    env.spec = EnvSpec("frontier_tune/Examined-v0", entry_point=type(env))  # without one it skips determinism
    if env.limits.turns < 2:  # its one random step would hit the turn limit, which the checker takes for a fault
        env.limits = dataclasses.replace(env.limits, turns=2)  # type: ignore[misc]
    env.action_space.seed(0)  # the checker's first action is drawn unseeded
    errors = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_env(env, skip_render_check=True, skip_close_check=True)
            env.close()
            env.close()  # has to be allowed twice
        except Exception as e:  # the checker asserts, the author's code may raise anything: either is the finding
            errors.append(f"{type(e).__name__}: {e}")
    return {"errors": errors, "warnings": sorted({str(w.message) for w in caught if w.category is UserWarning})}


def tasks(new: New, split: str, n: int, seed: int) -> dict[str, Any]:
    """A split's ``tasks`` as the author's generator gives them, unchecked, and whether a second environment gives the same."""
    drawn, again = (list(new().tasks(split, n, seed)) for _ in range(2))  # type: ignore[arg-type]
    wrong = next((t for t in drawn if not isinstance(t, Task)), None)
    if wrong is not None:
        raise BadInput(f"tasks returned {wrong!r:.100}, which is no Task")
    return {"tasks": [t.to_json() for t in drawn], "same": [t.hash for t in drawn] == [t.hash for t in again]}


def declared(new: New) -> dict[str, Any]:
    """What the class says of itself: ``answer_in_prompt``, tools with their effects, and the source text of its graders."""
    env = new()
    sources = []
    for function in _graders(env):
        try:
            sources.append({"name": function.__qualname__, "source": textwrap.dedent(inspect.getsource(function))})
        except OSError:  # made by exec or in an interpreter: there is no text to compare with
            continue
    return {"answer_in_prompt": env.answer_in_prompt, "effects": env.effects.of_tools, "graders": sources}


def effects(new: New, episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Play ``episodes`` ({"task", "script"}) under watch. ``reached``: calls after which an attached store's production differs
    though the tool is not real; ``outside``: calls that touch files, processes or peers; ``unrecorded``: mocks without an answer.

    ``called``: how often each tool was. Places other than tools are "begin" and "grade". Stores of more than ``MANY_RECORDS`` are
    compared at an episode's begin and end alone.
    """
    found: dict[str, Any] = {"reached": [], "outside": [], "unrecorded": [], "called": Counter()}
    env = new()
    held = _Production(env)
    for episode in episodes:
        with watching() as events:
            _, info = env.reset(options={"task": episode["task"]})
        _note(found, held, events, "begin", "own", over=True)
        last = len(episode["script"]) - 1
        for i, text in enumerate(episode["script"]):
            with watching() as events:
                *_, terminated, truncated, info = env.step(text)
            call = env.trace[-1].call
            place = call.name if call else "grade"
            found["called"][place] += call is not None
            over = terminated or truncated or i == last
            _note(found, held, events, place, env.effects.of_tools.get(place, "own"), over)
            if info["failure"] and info["failure"]["kind"] == NO_RECORDING:
                found["unrecorded"].append({"place": place, "detail": info["failure"]["detail"]})
            if terminated or truncated:
                break
        else:
            env.truncate()
    env.close()
    return found


class _Production:
    """What an environment's stores hold in production, as it was when it was last looked at."""

    def __init__(self, env: WorkflowEnv) -> None:
        self._env = env
        self._seen: dict[str, tuple[RecordStore, str]] = {}
        self.changed(over=True)

    def changed(self, over: bool) -> list[str]:
        """Names of stores that are no longer what they were. One that was attached since is looked at for the first time."""
        changed = []
        for name, store in self._env.effects.production.items():
            known = self._seen.get(name)
            if known is not None and known[0] is store and not over and _records(store) > MANY_RECORDS:
                continue
            digest = store_digest(store)
            if known is not None and known[0] is store and known[1] != digest:
                changed.append(name)
            self._seen[name] = store, digest
        return changed


def _records(store: RecordStore) -> int:
    return sum(len(store.keys(table)) for table in store.tables())


def _note(found: dict[str, Any], held: _Production, events: list[str], place: str, effect: str, over: bool = False) -> None:
    changed = held.changed(over)
    if effect != "real":
        found["reached"] += [{"place": place, "effect": effect, "store": name} for name in changed]
    found["outside"] += [{"place": place, "effect": effect, "event": e} for e in events]


def _graders(env: WorkflowEnv) -> Iterator[FunctionType]:
    """``grade`` and the functions of every rubric that its class or module holds."""
    module = inspect.getmodule(type(env))
    held = [*vars(module).values()] if module else []
    held += [value for cls in type(env).__mro__ for value in vars(cls).values()] + [*vars(env).values()]
    functions = [type(env).grade, *(c.function for r in held if isinstance(r, Rubric) for c in r.components)]
    seen: set[Any] = set()
    for function in functions:
        inner = inspect.unwrap(function)
        if isinstance(inner, FunctionType) and inner.__code__ not in seen:
            seen.add(inner.__code__)
            yield inner
