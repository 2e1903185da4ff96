"""Records as an agent sees them: places, sealed fields, searches; names that stand for one role only."""

from __future__ import annotations

from collections import Counter

import pytest

from frontier_tune.sdk import Grade, Message, Split, Task, ToolError, WorkflowEnv
from frontier_tune.sdk.records import MemoryStore
from frontier_tune.sdk.records.session import RecordSession
from frontier_tune.sdk.records.tools import PeopleTools
from frontier_tune.sdk.records.vocabulary import FIELDS


@pytest.fixture()
def session() -> RecordSession:
    tables = {
        "Requests": {"R1": {"State": "Open", "Limit": "X1", "Days": 3}, "R2": {"State": "Shut", "Limit": "Y2", "Days": None}}
    }
    return RecordSession(MemoryStore({**tables, "Staff": {}}), sealed={"Limit"})


def test_reading(session: RecordSession) -> None:
    assert session.overview() == "Requests 2; Staff 0"
    assert session.read("requests") == "Requests 2\nNumber: R1\nState: Open\nLimit: sealed\nDays: 3"
    assert session.read(" R2 ") == "Requests R2\nState: Shut\nLimit: sealed\nDays:"
    assert session.read("R1!limit") == "R1!Limit is X1" and session.read("Staff") == "Staff 0"
    with pytest.raises(ToolError, match="no record R3; tables: Requests 2; Staff 0"):
        session.read("R3")


def test_writing(session: RecordSession) -> None:
    assert session.write("R1! state", " Done ") == "R1!State is Done" and session.read("R1!State") == "R1!State is Done"
    for where, value, why in [
        ("R1", "x", "name a field"),
        ("R1!Nothing", "x", "fields: State, Limit, Days"),
        ("R1!State", "x" * 201, "at most 200"),
    ]:
        with pytest.raises(ToolError, match=why):
            session.write(where, value)


def test_finding_looks_at_open_fields_alone(session: RecordSession) -> None:
    assert session.find("O p e N", "Days") == "1 found\nDays|Number\n3|R1"
    for text, why in [("X1", "nothing holds"), (" ", "look for something")]:
        with pytest.raises(ToolError, match=why):
            session.find(text, "Days")


@pytest.fixture()
def linked() -> RecordSession:
    """A request, who sent it, and who leads them."""
    requests = {"R1": {"Sender": "Max", "State": "Open", "Pay": "9000", "Note": ""}, "R2": {"Sender": "Zoe", "State": "Open"}}
    return RecordSession(MemoryStore({"Requests": requests, "Staff": {"Max": {"Lead": "Ida", "Pay": "7"}}}), sealed={"Pay"})


def test_it_is_the_record_that_was_looked_at_last(linked: RecordSession) -> None:
    for look in (lambda: linked.read("it"), lambda: linked.write("it!State", "x")):
        with pytest.raises(ToolError, match="there is none yet"):
            look()
    linked.read("Requests")
    assert linked.it is None  # a table is no record
    linked.read("R1")
    assert linked.read("it!sender") == "R1!Sender is Max\nStaff Max\nLead: Ida\nPay: sealed" and linked.it == "R1"
    assert linked.read("it!Sender!Lead") == "Max!Lead is Ida" and linked.it == "R1"
    assert linked.write(" It!State ", "Done") == "R1!State is Done"
    linked.find("Open", "State")
    assert linked.it == "R2"  # the one that is open now
    linked.find("e", "State")
    assert linked.it is None  # two: which would be a guess
    assert linked.find("e", "State", "max") == "1 found\nState|Number\nDone|R1" and linked.it == "R1"
    with pytest.raises(ToolError, match="nothing holds Max and Zoe"):
        linked.find("Max", "State", "Zoe")


def test_references_stand_for_what_they_name(linked: RecordSession) -> None:
    linked.read("R1")
    assert linked.write("it!Note", "it!Sender!Lead") == "R1!Note is Ida"
    assert linked.write("R2!State", "it!Sender, R1!State,kept") == "R2!State is Max, Open, kept"
    assert linked.write("it!Note", "a,b! c") == "R1!Note is a,b! c"  # no record: what is said is meant
    assert (linked.refer("it"), linked.refer("Max!Lead"), linked.refer("Ida")) == ("R1", "Ida", "Ida")
    for reference, why in [
        ("it!Nothing", "no field Nothing in R1"),
        ("R2!Sender!Lead", "no record Zoe"),
        ("R1!State!x", "no record Open"),
    ]:
        with pytest.raises(ToolError, match=why):
            linked.write("it!Note", reference)
    assert linked.read("R1!Note") == "R1!Note is a,b! c"


def test_a_sealed_field_is_told_to_who_refers_to_it(linked: RecordSession) -> None:
    """So that graders of leaks find it in what was said: references are no way around them."""
    assert linked.write("R1!Note", "R1!Pay") == "R1!Note is 9000"
    assert linked.read("R1!Pay") == "R1!Pay is 9000"
    with pytest.raises(ToolError, match="Pay of R1 is sealed: nothing is found by it"):
        linked.read("R1!Pay!Name")


def test_a_name_stands_for_one_role() -> None:
    counts = Counter(name.casefold() for names in FIELDS.values() for name in names)
    assert [name for name, n in counts.items() if n > 1] == []


def test_people_without_a_reply_are_refused_before_anything_is_played() -> None:
    class Mute(PeopleTools, WorkflowEnv):
        def tasks(self, split: Split, n: int, seed: int) -> list[Task]:
            return []

        def begin(self, task: Task) -> list[Message]:
            return []

        def grade(self) -> Grade:
            return Grade(0.0, False)

    with pytest.raises(TypeError, match="abstract method '?reply"):
        Mute()  # type: ignore[abstract]
