"""A workflow on a store of records with virtual tools, and one subclass for each way in which effects go wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from frontier_tune.sdk import Component, Grade, Limits, Message, Rubric, Task, ToolError, WorkflowEnv, tool
from frontier_tune.sdk.env import Split
from frontier_tune.sdk.records import MemoryStore, RecordStore

TOWNS = ("Aachen", "Bergen", "Calais", "Dover", "Essen", "Faro", "Ghent", "Hull")
NAMES = ("Ana", "Ben", "Chen", "Dara", "Eli", "Fay", "Gus", "Ida", "Jan", "Kim", "Lou", "Max")
LEFT = Path(__file__).with_name("left.log")


class Desk(WorkflowEnv):
    """Give a customer the town that stands in the letter. Production is a store that outlives episodes."""

    name = "desk"
    limits = Limits(turns=4)
    rubric = Rubric(
        [
            Component("submitted", 0.1, lambda env: env.handed_in, required=True),
            Component("untouched", 0.1, lambda env: env.others_untouched(), required=True),
            Component("right", 0.8, lambda env: env.town == env.letter["town"], required=True),
        ]
    )

    def __init__(self) -> None:
        self.client: RecordStore = MemoryStore({"customers": {str(k): {"town": "?", "letters": []} for k in range(100, 200)}})
        self.store = self.attach_store("crm", self.client)

    def tasks(self, split: Split, n: int, seed: int) -> list[Task]:
        numbers = random.Random(f"{split}/{seed}").sample(range(10**6), n)
        return [Task("move", split, {"number": 2 * k + (split == "heldout")}) for k in numbers]

    def letter_of(self, task: Task) -> dict[str, str]:
        rng = random.Random(task.data["number"])
        street = f"{rng.choice(NAMES)} Street {rng.randint(1, 999)}"
        return {"customer": str(rng.randint(100, 199)), "town": f"{rng.choice(TOWNS)} {rng.randint(10, 99)}", "street": street}

    def begin(self, task: Task) -> Sequence[Message]:
        self.letter, self.handed_in = self.letter_of(task), False
        return [Message("user", f"Customer {self.letter['customer']} has moved to {self.letter['street']}; enter the town.")]

    @tool(effect="virtual")
    def letters(self) -> str:
        """Read today's letter."""
        return f"{self.letter['street']}, {self.letter['town']}"

    @tool(effect="virtual")
    def enter(self, customer: str, town: str) -> str:
        """Enter a customer's town.

        Args:
            customer: The number.
            town: The new town.
        """
        record = self.store.get("customers", customer)
        if record is None:
            raise ToolError(f"no customer {customer[:20]}")
        self.store.put("customers", customer, record | {"town": town})
        return f"{customer} lives in {town}"

    @tool(ends=True)
    def submit(self) -> str:
        """Hand in."""
        self.handed_in = True
        return "thank you"

    @property
    def town(self) -> str:
        return str((self.store.get("customers", self.letter["customer"]) or {}).get("town"))

    def others_untouched(self) -> bool:
        return {key for _, key in self.store.overlay.written} <= {self.letter["customer"]}

    def grade(self) -> Grade:
        return self.rubric.score(self)

    def golden(self, task: Task) -> list[str]:
        letter = self.letter_of(task)
        return ["letters", f"enter {letter['customer']} | {letter['town']}", "submit"]

    def canary_scripts(self, task: Task) -> dict[str, list[str]]:
        letters, enter, submit = self.golden(task)
        other = "100" if self.letter_of(task)["customer"] != "100" else "101"
        return {"everywhere": [f"enter {other} | x", enter, submit], "nowhere": [letters, submit]}


class WritesProduction(Desk):
    """The author keeps the client and writes through it."""

    @tool(effect="virtual")
    def enter(self, customer: str, town: str) -> str:
        """Enter a customer's town.

        Args:
            customer: The number.
            town: The new town.
        """
        text = super().enter(customer, town)
        self.client.put("customers", customer, {"town": town})
        return text


class _Aliased(MemoryStore):
    """A careless client: hands out its own records."""

    def get(self, table: str, key: str):  # type: ignore[no-untyped-def]
        return self._tables.get(table, {}).get(key)


class Aliases(Desk):
    """Sound all the same: the overlay copies what a careless client hands out, so changing it reaches nobody."""

    def __init__(self) -> None:
        self.client = _Aliased({"customers": {str(k): {"town": "?", "letters": []} for k in range(100, 200)}})
        self.store = self.attach_store("crm", self.client)

    @tool(effect="virtual")
    def enter(self, customer: str, town: str) -> str:
        """Enter a customer's town.

        Args:
            customer: The number.
            town: The new town.
        """
        if (record := self.store.get("customers", customer)) is not None:
            record["town"] = "changed in place"
            record["letters"].append(town)
        return super().enter(customer, town)


class LeavesFiles(Desk):
    """A virtual tool that writes past every store."""

    @tool(effect="virtual")
    def letters(self) -> str:
        """Read today's letter."""
        with LEFT.open("a") as log:
            log.write("read\n")
        return super().letters()


class Real(Desk):
    """One tool writes to production."""

    @tool(effect="real")
    def enter(self, customer: str, town: str) -> str:
        """Enter a customer's town.

        Args:
            customer: The number.
            town: The new town.
        """
        return super().enter(customer, town)


class Mocked(Desk):
    """The letters come from a recording beside this file, which holds a part of them."""

    recordings = "letters.json"

    @tool(effect="mock")
    def letters(self) -> str:
        """Read today's letter."""
        return super().letters()


class NoFile(Mocked):
    """A mock whose recording was never made."""

    recordings = "letters_of_yesterday.json"


class WritesInBegin(Desk):
    """Many customers, one of whom is changed before the agent does anything."""

    def __init__(self) -> None:
        self.client = MemoryStore({"customers": {str(k): {"town": "?"} for k in range(100, 1400)}})
        self.store = self.attach_store("crm", self.client)

    def begin(self, task: Task) -> Sequence[Message]:
        self.client.put("customers", "100", {"town": str(task.data["number"])})
        return super().begin(task)


class Unrecorded(Mocked):
    """The agent may look at any letter, and only one was recorded."""

    @tool(effect="mock")
    def letters(self, of: str = "today") -> str:
        """Read a letter.

        Args:
            of: Which day's.
        """
        return super().letters()

    def golden(self, task: Task) -> list[str]:
        letters, *rest = super().golden(task)
        return ["letters monday", *rest]
