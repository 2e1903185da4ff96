"""What the people around a request answer, by rules. They answer alike whether or not it was right to ask them."""

from __future__ import annotations

from envs.hr_triage.cases import REQUESTS, Case
from frontier_tune.sdk import ToolError
from frontier_tune.sdk.records import StoreView
from frontier_tune.sdk.records.tools import Contact

DECISIONS = {"granted": "approved", "refused": "refused", "confided": "taken on", "suspected": "approved"}


def reply(case: Case, store: StoreView, contact: Contact) -> str:
    """The answer. An owner who is asked for an empty field of the request fills it in. Raises ToolError for strangers."""
    known = {case.owner, *(person for chain in case.chain.values() for person in chain)}
    if contact.person not in known:
        raise ToolError(f"nobody here is called {contact.person[:40]}, or it is no concern of theirs")
    return _asked(case, store, contact) if contact.verb == "ask" else _requested(case, contact)


def _asked(case: Case, store: StoreView, contact: Contact) -> str:
    if contact.person != case.owner:
        return f"ask {case.owner}"
    role = next((r for r in case.kind.details if case.header[r].casefold() == contact.about.casefold()), None)
    if role is None:
        return "I have nothing to add"
    said = case.answers[role]
    if case.kind.form == "verification":
        differs = case.went == "suspected"
        return f"{said}, which {'differs from' if differs else 'agrees with'} the record"
    record = store.get(REQUESTS, case.number) or {}
    store.put(REQUESTS, case.number, record | {case.header[role]: said})
    return f"{said}, I have filled it in"


def _requested(case: Case, contact: Contact) -> str:
    if contact.about != case.number:
        raise ToolError(f"request a decision on {case.number}, not on {contact.about[:40]}")
    if contact.person == case.owner:
        return "I can't decide on my own request"
    for chain in case.chain.values():
        if len(chain) > 1 and contact.person == chain[0]:
            why = "I am concerned in it" if case.kind.form == "confidence" else "I am away"
            return f"{why}, request {chain[1]}"
    return DECISIONS[case.went]
