"""The verbs by which an agent works on records: read, write, submit. And those by which it talks to people: ask, request.

A ``WorkflowEnv`` mixes in what it needs, sets ``self.records`` when an episode begins and answers for its people.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Literal

from frontier_tune.sdk.records.session import RecordSession
from frontier_tune.sdk.tools import tool


class RecordTools:
    """Tools on ``self.records``. All of them are virtual: production's records are read, and never written."""

    records: RecordSession

    @tool(effect="virtual")
    def read(self, where: str) -> str:
        """Look at a table (its fields and first record), at a record or at one field.

        Args:
            where: A table, a record's number, or a field such as ``R12!State``. ``it`` is the record that was looked at last.
        """
        return self.records.read(where)

    @tool(effect="virtual")
    def write(self, where: str, value: str) -> str:
        """Write into a field of a record.

        Args:
            where: The field, such as ``R12!State`` or ``it!State``.
            value: What to write. A field, such as ``it!Sender``, stands for what it holds.
        """
        return self.records.write(where, value)

    @tool(ends=True)
    def submit(self) -> str:
        """Hand the work in; it is graded as it stands."""
        return "submitted"


@dataclass(frozen=True)
class Contact:
    """One word with a person: ``ask`` for something that is missing, or ``request`` a decision on something."""

    verb: Literal["ask", "request"]
    person: str
    about: str


class PeopleTools(abc.ABC):
    """Tools that reach people, simulated by rules: ``reply`` says what they answer.

    ``contacts``, set anew by ``begin``, keeps who was bothered with what; a contact that ToolError refused did not happen.
    """

    contacts: list[Contact]
    records: RecordSession  # what references are to

    @abc.abstractmethod
    def reply(self, contact: Contact) -> str:
        """What the person answers, and what they do. Raises ToolError where nobody of that name can be reached."""

    @tool(effect="virtual")
    def ask(self, person: str, about: str) -> str:
        """Ask a person for something.

        Args:
            person: Their name, or a field that holds it, such as ``it!Sender``.
            about: What is wanted, for example the name of a field that is empty.
        """
        return self._contact(Contact("ask", self.records.refer(person), about.strip()))

    @tool(effect="virtual")
    def request(self, person: str, about: str) -> str:
        """Request a person's decision.

        Args:
            person: Their name, or a field that holds it, such as ``it!Sender!Lead``.
            about: The number of what they decide on, or ``it``.
        """
        return self._contact(Contact("request", self.records.refer(person), self.records.refer(about)))

    def _contact(self, contact: Contact) -> str:
        said = self.reply(contact)
        self.contacts.append(contact)
        return f"{contact.person}: {said}"
