"""What tools may touch. An author declares it, ``@tool(effect=...)``; this module holds the tools to it.

- ``own`` (the default): nothing but what the episode itself holds.
- ``virtual``: production's records, through ``self.attach_store(name, store)``: reads pass, writes stay in an overlay that later
  reads of the same episode see and production never does. A tool that only reads production is virtual.
- ``mock``: nothing; its answers come from the class's ``recordings`` file.
- ``real``: production. Refused unless the run names the tool (``environment.allow_real_writes``) and the policy file allows it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier_tune.contracts import BadInput, Blame, EpisodeFailed, Failure
from frontier_tune.sdk.recordings import Recording
from frontier_tune.sdk.records.overlay import StoreView
from frontier_tune.sdk.records.store import RecordStore
from frontier_tune.sdk.tools import Effect, Signature, ToolError

if TYPE_CHECKING:
    from frontier_tune.sdk.env import WorkflowEnv

REFUSED = "real-write-refused"


class Effects:
    """The effects of one environment: its stores and recording, which real tools may run, and what runs at the moment."""

    def __init__(self, env: WorkflowEnv) -> None:
        self._env = env
        self.allowed: frozenset[str] = frozenset()
        self.stores: dict[str, StoreView] = {}
        self.production: dict[str, RecordStore] = {}
        self._running: Effect = "own"
        self._recording: Recording | None = None
        self._recorded: list[dict[str, Any]] | None = None

    @cached_property
    def of_tools(self) -> dict[str, Effect]:
        """Effects by verb."""
        return {verb: signature.effect for verb, signature in self._env.signatures.items()}

    def allow_real_writes(self, tools: Iterable[str]) -> None:
        """Let these real tools run. Raises BadInput for one that is no real tool here."""
        names = tuple(tools)
        check_allowed(self._env.name, self.of_tools, names)
        self.allowed = frozenset(names)

    def prepare(self, allowed: Iterable[str]) -> None:
        """Before any episode: allow real tools, load the recording of mock ones. Raises BadInput where either can't be."""
        self.allow_real_writes(allowed)
        if "mock" in self.of_tools.values():
            self._recordings()

    def attach(self, name: str, production: RecordStore) -> StoreView:
        """A view of a store for this environment's tools. A store attached under the same name before is replaced."""
        self.production[name] = production
        self.stores[name] = view = StoreView(production, lambda: self._running)
        return view

    def begin(self) -> None:
        """An episode begins: overlays are empty, recordings start anew."""
        for view in self.stores.values():
            view.reset()
        if self._recording is not None:
            self._recording.begin()

    def record_to(self, calls: list[dict[str, Any]] | None) -> None:
        """Run mock tools' own bodies and append what they say to ``calls``; None: answer from the recording again."""
        self._recorded = calls

    def run(self, signature: Signature, arguments: Mapping[str, Any], method: Callable[..., str]) -> str:
        """Carry a call out as its effect has it. Raises EpisodeFailed: a real write isn't allowed, or no recording matches."""
        if signature.effect == "mock" and self._recorded is None:
            answer = self._recordings().answer(signature.name, arguments)
            if answer.error:
                raise ToolError(answer.text)
            return answer.text
        if signature.effect == "real" and signature.name not in self.allowed:
            how = "name it in environment.allow_real_writes, or declare it virtual"
            detail = f"'{signature.name}' writes to production, which this run does not allow; {how}"
            raise EpisodeFailed(Failure(REFUSED, Blame.ENVIRONMENT, detail))
        self._running = signature.effect
        row: dict[str, Any] = {"tool": signature.name, "arguments": dict(arguments), "answer": "", "error": False}
        try:
            text = row["answer"] = method(**arguments)
        except ToolError as e:
            row |= {"answer": str(e), "error": True}
            raise
        finally:
            self._running = "own"
            if signature.effect == "mock" and self._recorded is not None:
                self._recorded.append(row)
        return text

    def _recordings(self) -> Recording:
        if self._recording is None:
            env = self._env
            if env.recordings is None:
                raise BadInput(f"{env.name}: it has mock tools but no recording; set recordings = 'file.json' on the class")
            path = Path(env.recordings)
            self._recording = Recording.load(path if path.is_absolute() else Path(inspect.getfile(type(env))).parent / path)
        return self._recording


def check_allowed(where: str, effects: Mapping[str, Effect], allowed: Iterable[str]) -> None:
    """Raises BadInput where ``allowed`` names what is no real tool among ``effects`` (effects by verb)."""
    real = [verb for verb, effect in effects.items() if effect == "real"]
    for name in allowed:
        if name not in real:
            kind = f"is {effects[name]}, not real" if name in effects else "is no tool of it"
            raise BadInput(f"allow_real_writes: '{name}' {kind}; real tools of {where}: {', '.join(real) or 'none'}")
