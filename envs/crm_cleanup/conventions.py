"""How a company keeps its customer file. No prompt says it: it has to be learned from reward."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from itertools import combinations, product
from typing import Any

TOLD = ("town", "phone", "industry", "segment")  # what a message may tell whoever takes over
ERASED = ("phone", "mobile", "town", "brand")  # what is cleared of someone who wants to be forgotten

CHOICES: dict[str, tuple[Any, ...]] = {
    "trusted": ("Fair", "Mail", "Phone", "Web"),
    "merged": ("Merged", "Clean", "Checked"),
    "line": ("phone", "mobile", "direct"),
    "line_style": ("international", "national", "dotted", "digits"),
    "heading": ("name", "legal", "brand"),
    "heading_style": ("title", "upper", "lower", "short"),
    "key": ("region", "industry", "segment"),
    "seat": ("rep", "deputy", "support", "manager"),
    "retired": ("Dormant", "Archived", "Lost", "Asleep"),
    "heir": ("House", "Nobody", "Pool"),
    "consent": ("mail_ok", "call_ok", "post_ok"),
    "agreed": ("Yes", "Signed", "Opted in", "Confirmed"),
    "reader": ("rep", "deputy", "manager"),
    "told": tuple(combinations(TOLD, 2)),
    "erased": tuple(combinations(ERASED, 2)),
    "forgotten": ("Erased", "Withdrawn"),
}


@dataclass(frozen=True)
class Kind:
    """A kind of task: its prompt, the conventions that decide it, and the fields that its customers have."""

    name: str
    prompt: str
    conventions: tuple[str, ...]
    roles: tuple[str, ...]


KINDS: dict[str, Kind] = {
    k.name: k
    for k in (
        Kind("dedupe", "Merge the duplicates of {name}.", ("trusted", "merged"), ("town", "phone", "state")),
        Kind("number", "Bring the main number of {number} into form.", ("line", "line_style"), ("phone", "mobile", "direct")),
        Kind("heading", "Bring the heading of {number} into form.", ("heading", "heading_style"), ("legal", "brand")),
        Kind("territory", "Give {number} to whom it belongs.", ("key", "seat"), ("region", "industry", "segment", "keeper")),
        Kind("retire", "Retire {number}.", ("retired", "heir"), ("last_order", "keeper", "state")),
        Kind("consent", "{number} agrees to hear from us.", ("consent", "agreed"), ("mail_ok", "call_ok", "post_ok")),
        Kind("handover", "Hand {number} over.", ("reader", "told"), (*TOLD, "rep", "deputy", "manager")),
        Kind("erase", "{number} wants to be forgotten.", ("erased", "forgotten"), (*ERASED, "state")),
    )
}


@dataclass(frozen=True)
class Company:
    """The conventions of one company; every field holds one of ``CHOICES``.

    ``trusted``: the source whose record survives a merge. ``line`` and ``title``: the field that counts as main number and as
    heading, each with its style. ``key`` and ``seat``: the territory that decides, and who of it gets the customer.
    """

    trusted: str
    merged: str
    line: str
    line_style: str
    heading: str
    heading_style: str
    key: str
    seat: str
    retired: str
    heir: str
    consent: str
    agreed: str
    reader: str
    told: tuple[str, str]
    erased: tuple[str, str]
    forgotten: str

    @classmethod
    def draw(cls, seed: int) -> Company:
        """The company of a seed: each convention drawn evenly, independently of the others."""
        rng = random.Random(f"crm_cleanup/company/{seed}")
        return cls(**{f.name: rng.choice(CHOICES[f.name]) for f in fields(cls)})

    def alternatives(self, kind: str) -> list[Company]:
        """Companies that agree with this one but for what decides tasks of ``kind``: every combination, this one included."""
        names = KINDS[kind].conventions
        return [replace(self, **dict(zip(names, values))) for values in product(*(CHOICES[n] for n in names))]

    def describe(self) -> str:
        """The conventions in words, for people; no model is shown them."""
        return "\n".join(
            [
                f"Of duplicates the record that came by {self.trusted} survives; its state is then {self.merged}.",
                f"The main number is the {self.line} number, written {self.line_style}.",
                f"The heading is the {self.heading.replace('name', 'plain')} name, written {self.heading_style}.",
                f"A customer belongs to the {self.seat} of its {self.key}.",
                f"A retired customer's state is {self.retired}, and it belongs to {self.heir}.",
                f"Consent is entered under {self.consent.replace('_ok', '')}, as {self.agreed}.",
                f"A handover tells the {self.reader} {self.told[0]} and {self.told[1]}, and nothing else.",
                f"Who wants to be forgotten loses {self.erased[0]} and {self.erased[1]}; the state is then {self.forgotten}.",
            ]
        )
