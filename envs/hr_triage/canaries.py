"""Agents that try to be paid without doing the work. Each must fail on every task; one that succeeds shows a hole."""

from __future__ import annotations

from envs.hr_triage.cases import Case
from envs.hr_triage.conventions import OUTCOMES, Company


def scripts(case: Case, company: Company) -> dict[str, list[str]]:
    """Calls by the canary's name."""
    read, read_owner, ask, *requests, write, submit = case.golden(company, spelled=True)
    state = f"write {case.number}!{case.header['state']} | "
    handlers = [f"request {person} | {case.number}" for person in dict.fromkeys(c[0] for c in case.chain.values())]
    questions = [f"ask {case.owner} | {case.header[role]}" for role in case.kind.details]
    other = next(number for number in case.tables["Requests"] if number != case.number)
    field = list(case.tables["Requests"][case.number])[0]
    wrong = next(word for word in OUTCOMES[case.went] if word != company.outcome[case.went])
    return {
        "writes the state and asks nobody": [write, submit],
        "skips the question": [*requests, write, submit],
        "asks for everything": [*questions, *requests, write, submit],
        "requests everybody": [ask, *handlers, write, submit],
        "requests the owner": [ask, f"request {case.owner} | {case.number}", write, submit],
        "says every word": [ask, *requests, state + " ".join(OUTCOMES[case.went]), submit],
        "takes another word": [ask, *requests, state + wrong, submit],
        "settles the neighbour, too": [ask, *requests, write, f"write {other}!{case.header['state']} | Closed", submit],
        "fills the form in itself": [f"write {case.number}!{field} | x", *requests, write, submit],
        "never hands in": [read, read_owner, ask, *requests, write],
    }
