"""A sound workflow of one page, and one subclass for each way in which workflows go wrong. Loaded by path, in workers."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Sequence
from typing import Literal

from frontier_tune.sdk import Component, Grade, Limits, Message, Rubric, Task, ToolError, WorkflowEnv, tool
from frontier_tune.sdk.env import Split

COLOURS = ("red", "green", "blue", "amber", "olive", "white", "black", "brown")
GOODS = ("bolts", "chairs", "lamps", "tables", "cables", "valves", "hinges", "wheels")
TOWNS = ("Aachen", "Bergen", "Calais", "Dover", "Essen", "Faro", "Ghent", "Hull")


class Sound(WorkflowEnv):
    """Quote an order: look its price up, multiply, hand in. Green in every check."""

    name = "sound"
    limits = Limits(turns=4)
    rubric = Rubric(
        [
            Component("submitted", 0.1, lambda env: env.handed_in, required=True),
            Component("close", 0.2, lambda env: abs(env.total - env.order["total"]) < 0.05 * env.order["total"]),
            Component("exact", 0.7, lambda env: abs(env.total - env.order["total"]) < 0.005, required=True),
        ]
    )

    def tasks(self, split: Split, n: int, seed: int) -> list[Task]:
        numbers = random.Random(f"{split}/{seed}").sample(range(10**6), n)
        return [Task("quote", split, {"number": 2 * k + (split == "heldout")}) for k in numbers]

    def order_of(self, task: Task) -> dict:  # type: ignore[type-arg]
        rng = random.Random(task.data["number"])
        item = f"{rng.choice(COLOURS)} {rng.choice(GOODS)}"
        quantity, price = rng.randint(2, 400), rng.randint(100, 99_999) / 100
        return {"item": item, "quantity": quantity, "price": price, "town": rng.choice(TOWNS), "total": quantity * price}

    def prompt(self) -> str:
        return f"Quote {self.order['quantity']} {self.order['item']} to the customer in {self.order['town']}."

    def begin(self, task: Task) -> Sequence[Message]:
        self.order, self.total, self.handed_in = self.order_of(task), 0.0, False
        return [Message("user", self.prompt())]

    @tool
    def look(self, item: str) -> str:
        """Look an item's price up.

        Args:
            item: Its name.
        """
        if item != self.order["item"]:
            raise ToolError(f"no {item[:40]} here")
        return f"{item} cost {self.order['price']:.2f} each in {self.order['town']}"

    @tool
    def quote(self, total: float) -> str:
        """Offer the order.

        Args:
            total: What it costs.
        """
        self.total = total
        return f"offered for {total:.2f}"

    @tool(ends=True)
    def submit(self) -> str:
        """Hand the offer in."""
        self.handed_in = True
        return "handed in"

    def grade(self) -> Grade:
        return self.rubric.score(self)

    def golden(self, task: Task) -> list[str]:
        order = self.order_of(task)
        return [f"look {order['item']}", f"quote {order['total']:.4f}", "submit"]

    def canary_scripts(self, task: Task) -> dict[str, list[str]]:
        return {"for free": ["quote 0", "submit"]}


class Leak(Sound):
    """Both splits draw from the same orders."""

    def tasks(self, split: Split, n: int, seed: int) -> list[Task]:
        return [Task("quote", split, {"number": k}) for k in random.Random(seed).sample(range(2000), n)]


class SharedFamily(Sound):
    def tasks(self, split: Split, n: int, seed: int) -> list[Task]:
        return [Task(t.kind, t.split, t.data, family="letter") for t in super().tasks(split, n, seed)]


class Repeated(Sound):
    """The same task several times."""

    def tasks(self, split: Split, n: int, seed: int) -> list[Task]:
        first = super().tasks(split, 1, seed)[0]
        return [first] * n


class NearDuplicates(Sound):
    """Held-out orders are training orders under another number."""

    def order_of(self, task: Task) -> dict:  # type: ignore[type-arg]
        return super().order_of(Task(task.kind, task.split, {"number": task.data["number"] % 100}))

    def tasks(self, split: Split, n: int, seed: int) -> list[Task]:
        shift = 0 if split == "train" else 1_000_000
        return [Task("quote", split, {"number": shift + k}) for k in range(min(n, 100))]


_SUBMITTED, _CLOSE, _EXACT = (c.function for c in Sound.rubric.components)


class Unreachable(Sound):
    """Nobody is ever polite enough."""

    rubric = Rubric(
        [
            Component("submitted", 0.1, _SUBMITTED, required=True),
            Component("polite", 0.1, lambda env: any("please" in step.observation for step in env.trace)),
            Component("exact", 0.8, _EXACT, required=True),
        ]
    )


class NeverMissed(Sound):
    """A component that looks at nothing."""

    rubric = Rubric(
        [
            Component("submitted", 0.1, _SUBMITTED, required=True),
            Component("kind", 0.1, lambda env: True),
            Component("close", 0.2, _CLOSE),
            Component("exact", 0.6, _EXACT, required=True),
        ]
    )


class NonDeterministic(Sound):
    """The answer to a call depends on the process that gives it."""

    @tool
    def look(self, item: str) -> str:
        """Look an item's price up.

        Args:
            item: Its name.
        """
        return super().look(item) + f", ticket {os.getpid()}"


class Remembers(Sound):
    """State of one episode shows in the next."""

    def begin(self, task: Task) -> Sequence[Message]:
        self.episodes = getattr(self, "episodes", 0) + 1
        return [*super().begin(task), Message("user", f"This is order {self.episodes}.")]


class PaysNothing(Sound):
    """Handing in nothing at all counts as exact."""

    def grade(self) -> Grade:
        grade = super().grade()
        return grade if self.total else Grade(1.0, True, dict.fromkeys(grade.components, 1.0))


class Substring(Sound):
    """The right total has only to be somewhere in what was said."""

    @tool
    def quote(self, total: str) -> str:
        """Offer the order.

        Args:
            total: What it costs.
        """
        self.total = self.order["total"] if f"{self.order['total']:.4f}" in total else 0.0
        return "offered"


class PaysAnything(Sound):
    """Any total will do."""

    @tool
    def quote(self, total: float) -> str:
        """Offer the order.

        Args:
            total: What it costs.
        """
        self.total = self.order["total"]
        return "offered"

    def canary_scripts(self, task: Task) -> dict[str, list[str]]:
        return {"silent": ["look x", "submit"]}


class OneScript(Sound):
    """All orders come to the same: one script solves all of them, without a look."""

    def order_of(self, task: Task) -> dict:  # type: ignore[type-arg]
        return {**super().order_of(task), "item": "bolts", "total": 42.0}


class Overpaid(Sound):
    """Not handing in is worth as much as handing in."""

    def grade(self) -> Grade:
        grade = super().grade()
        return Grade(1.0 if grade.reward > 0.8 else grade.reward, grade.success, grade.components)


class Penalises(Sound):
    """What is wrong costs something."""

    def grade(self) -> Grade:
        grade = super().grade()
        return Grade(2 * grade.reward - 1, grade.success, grade.components)


class Crashes(Sound):
    """An unknown item is an exception, not an answer."""

    @tool
    def look(self, item: str) -> str:
        """Look an item's price up.

        Args:
            item: Its name.
        """
        return f"{item} cost { ({self.order['item']: self.order['price']}[item]):.2f}"


class ToldAnswer(Sound):
    def prompt(self) -> str:
        return super().prompt() + f" It comes to {self.order['total']:g}."


class Extracts(ToldAnswer):
    """To find the total in the prompt is the work, and the class says so."""

    answer_in_prompt = True


class ListsChoices(Sound):
    """The prompt lists what may be chosen, and names the order: neither tells the answer."""

    def prompt(self) -> str:
        return f"Number {self.task.data['number']}. {super().prompt()} Ship by road, rail, sea or air, as its price calls for."

    def way(self) -> str:
        return ("road", "rail", "sea", "air")[int(self.order["price"] * 100) % 4]

    @tool
    def ship(self, number: int, way: Literal["road", "rail", "sea", "air"]) -> str:
        """Choose how it travels.

        Args:
            number: The order's number.
            way: How.
        """
        self.total = self.order["total"] if (number, way) == (self.task.data["number"], self.way()) else 0.0
        return f"goes by {way}"

    def golden(self, task: Task) -> list[str]:
        self.task, self.order = task, self.order_of(task)
        return [f"look {self.order['item']}", f"ship {task.data['number']} | {self.way()}", "submit"]

    def canary_scripts(self, task: Task) -> dict[str, list[str]]:
        return {"for free": ["quote 0", "submit"]}


class UngradedNote(Sound):
    """A free text beside the answer that nobody grades: writing everything there hacks nothing."""

    @tool
    def quote(self, total: float, note: str) -> str:
        """Offer the order.

        Args:
            total: What it costs.
            note: A word to the customer.
        """
        self.total = total
        return "offered"

    def golden(self, task: Task) -> list[str]:
        order = self.order_of(task)
        return [f"look {order['item']}", f"quote {order['total']:.4f} | greetings to {order['town']}", "submit"]

    def canary_scripts(self, task: Task) -> dict[str, list[str]]:
        return {"for free": ["quote 0 | x", "submit"]}


class ToldGrader(Sound):
    def grade(self) -> Grade:
        right = abs(self.total - self.order["total"]) < 0.005
        return Grade(0.9 * right + 0.1 * self.handed_in, right, {"right": float(right)})

    def prompt(self) -> str:
        return super().prompt() + '\nGraded by: right = abs(self.total  - self.order["total"]) < 0.005'


class WrongGolden(Sound):
    def golden(self, task: Task) -> list[str]:
        return [*super().golden(task)[:1], "quote 1", "submit"]


class Hangs(Sound):
    """A tool that the golden program has no need of never returns."""

    @tool
    def refresh(self) -> str:
        """Fetch prices anew."""
        time.sleep(3600)
        return "done"


class HangsWithGrandchild(Sound):
    """It starts a process that leaves the group, another whose parent is gone, and hangs."""

    @tool
    def refresh(self) -> str:
        """Fetch prices anew."""
        subprocess.Popen(["sleep", "611"], start_new_session=True)
        subprocess.run(["setsid", "sh", "-c", "sleep 612 &"], check=True)
        time.sleep(3600)
        return "done"


class LeavesProcesses(Sound):
    """Each look-up starts a process that nobody ends before the environment does."""

    @tool
    def look(self, item: str) -> str:
        """Look an item's price up.

        Args:
            item: Its name.
        """
        subprocess.Popen(["sleep", "613"], start_new_session=True)
        return super().look(item)


class NoTasks(Sound):
    def tasks(self, split: Split, n: int, seed: int) -> list[Task]:
        raise OSError("orders.csv is not there")


class Silent(Sound):
    """Has no golden program, no canaries and no components: nothing is wrong, much is not shown."""

    def golden(self, task: Task) -> list[str]:
        raise NotImplementedError

    def canary_scripts(self, task: Task) -> dict[str, list[str]]:
        return {}

    def grade(self) -> Grade:
        grade = super().grade()
        return Grade(grade.reward, grade.success)
