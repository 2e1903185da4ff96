"""A trace as an environment knows dialogues: opening messages, then turns of one call each with what was answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from frontier_tune.contracts import BadInput, Message
from frontier_tune.sdk.grammar import GrammarError, ToolCall, bind, parse, render_json
from frontier_tune.sdk.tools import Signature
from frontier_tune.traces.schema import Call, Correction, Said, Trace

Signatures = Mapping[str, Signature]


@dataclass(frozen=True)
class Turn:
    """One call, and the messages that followed it. ``text`` where the turn was no call that fits: only fit to be rejected."""

    call: ToolCall | None
    answer: tuple[Message, ...] = ()
    text: str = ""

    @property
    def said(self) -> ToolCall | str:
        return self.call if self.call is not None else self.text

    def to_json(self) -> dict[str, Any]:
        return {**said_json(self.said), "answer": [asdict(m) for m in self.answer]}


@dataclass(frozen=True)
class Dialogue:
    """``notes``: what of the trace has no place in an environment's dialogue and was left out, for people."""

    opening: tuple[Message, ...]
    turns: tuple[Turn, ...]
    notes: tuple[str, ...] = field(default=())


def said_json(said: ToolCall | str) -> dict[str, Any]:
    return {"text": said} if isinstance(said, str) else {"call": {"name": said.name, "arguments": said.arguments}}


def said_of(data: Mapping[str, Any]) -> ToolCall | str:
    """What ``said_json`` wrote."""
    return ToolCall(data["call"]["name"], data["call"]["arguments"]) if "call" in data else str(data["text"])


def fit(call: Call, signatures: Signatures) -> ToolCall:
    """The call, arguments as they were written, checked against the environment's tools. Raises GrammarError."""
    bind(call.name, call.arguments, signatures)
    return ToolCall(call.name, dict(call.arguments))


def corrected(correction: Correction, signatures: Signatures) -> ToolCall:
    """What the reviewer wants. Raises BadInput where it fits no tool."""
    try:
        if correction.tool_call is not None:
            return fit(correction.tool_call, signatures)
        return parse(correction.content, signatures)
    except GrammarError as e:
        raise BadInput(f"correction of turn {correction.turn}: {e}") from None


def unroll(trace: Trace, signatures: Signatures) -> Dialogue:
    """The trace's dialogue. Calls made in parallel become turns in the order in which they were written.

    Only a trace that names its task, and so is played again, may leave results out. A correction excuses its turn from fitting:
    that may be why it was corrected. Raises BadInput, naming the turn, for a call that fits no tool, an assistant's text that is
    none, a missing result, or a dialogue without any call.
    """
    excused = {c.turn for c in trace.corrections}
    messages, opening, notes = list(trace.messages), [], []
    while messages and messages[0].role != "assistant":
        opening.append(_message(messages.pop(0)))
    if not any(m.role == "user" for m in opening):
        raise BadInput("it does not begin with a user's message, so there is nothing that was asked for")
    turns: list[Turn] = []
    while messages:
        said, answers = messages.pop(0), []
        while messages and messages[0].role != "assistant":
            answers.append(messages.pop(0))
        if not said.tool_calls and turns and not messages and not answers and len(turns) not in excused:
            try:
                parse(said.content, signatures)
            except GrammarError:  # what agents say when they are done
                notes.append("closing words of the assistant were left out")
                continue
        if said.tool_calls and said.content.strip():
            notes.append(f"turn {len(turns)}: words beside the call were left out")
        needed = max(1, len(said.tool_calls)) - (not messages)  # the last call's may never have come
        results = sum(a.role == "tool" for a in answers)
        if results > max(1, len(said.tool_calls)) or (results < needed and (results or trace.task is None)):
            raise BadInput(f"turn {len(turns)}: {max(1, len(said.tool_calls))} calls, but {results} results")
        turns += _turns(said, answers, len(turns), excused, signatures)
    if not turns:
        raise BadInput("it has no call; a demonstration shows what to do")
    missing = sorted(c for c in excused if c >= len(turns))
    if missing:
        raise BadInput(f"correction of turn {missing[0]}: the trace has {len(turns)} turns, counted from 0")
    return Dialogue(tuple(opening), tuple(turns), tuple(notes))


def _turns(said: Said, answers: list[Said], first: int, excused: set[int], signatures: Signatures) -> list[Turn]:
    if not said.tool_calls:
        answer = tuple(_message(a) for a in answers)
        try:
            return [Turn(parse(said.content, signatures), answer)]
        except GrammarError as e:
            if first in excused and said.content.strip():
                return [Turn(None, answer, said.content.strip())]
            raise BadInput(f"turn {first}: neither a tool call nor text that is one: {e}") from None
    results, others = [a for a in answers if a.role == "tool"], [a for a in answers if a.role != "tool"]
    ordered = _by_call(said.tool_calls, results)
    turns = []
    for i, call in enumerate(said.tool_calls):
        answer = (_message(ordered[i]),) if ordered[i] is not None else ()  # type: ignore[arg-type]
        if i == len(said.tool_calls) - 1:
            answer += tuple(_message(o) for o in others)
        try:
            turns.append(Turn(fit(call, signatures), answer))
        except GrammarError as e:
            if first + i not in excused:
                raise BadInput(f"turn {first + i}: {e}") from None
            turns.append(Turn(None, answer, render_json(ToolCall(call.name, call.arguments))))
    return turns


def _by_call(calls: tuple[Call, ...], results: list[Said]) -> list[Said | None]:
    """The result of each call: by its id where both sides have one, else by order."""
    ids = [r.tool_call_id for r in results]
    if all(ids) and all(c.id for c in calls):
        found = {r.tool_call_id: r for r in results}
        if set(found) <= {c.id for c in calls} and len(found) == len(results):
            return [found.get(c.id) for c in calls]
    return [*results, *[None] * (len(calls) - len(results))]


def _message(said: Said) -> Message:
    return Message(said.role, said.content)
