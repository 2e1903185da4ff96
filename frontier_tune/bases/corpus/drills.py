"""Drills: short dialogues without a workbook's tables, dense in copying. They come first, so that the attention heads which copy
(from prompt to call, from header to formula) stand before the long dialogues ask for more.

Words are drawn from every name that the vocabulary has, so that a drill says nothing about what goes with what.
"""

from __future__ import annotations

import random

from frontier_tune.bases.corpus.questions import ROUNDINGS
from frontier_tune.contracts import Message
from frontier_tune.sdk.workbook.vocabulary import COLUMNS, SHEETS, VALUES

_COLUMNS = tuple(name for names in COLUMNS.values() for name in names)
_SHEETS = tuple(name for names in SHEETS.values() for name in names)
_VALUES = tuple(value for values in VALUES.values() for value in values)


def _address(rng: random.Random) -> str:
    return f"{rng.choice('ABCDEFGHJKLM')}{rng.randint(1, 199)}"


def write_words(rng: random.Random) -> list[Message]:
    """Copy some words from the prompt into a cell."""
    words = " ".join(rng.choice(_COLUMNS + _VALUES + _SHEETS) for _ in range(rng.randint(2, 8)))
    target = f"{rng.choice(_SHEETS)}!{_address(rng)}"
    return [
        Message("user", f"Write {words} to {target}."),
        Message("assistant", f"write {target} | {words}"),
        Message("tool", f"{target} is {words}"),
        Message("assistant", "submit"),
    ]


def fill_named(rng: random.Random) -> list[Message]:
    """Copy column names from the prompt into a formula, by way of a header line that holds them."""
    sheet = rng.choice(_SHEETS)
    headers = rng.sample(_COLUMNS, rng.randint(3, 8))
    target, *rest = rng.sample(headers, rng.randint(2, min(4, len(headers))))
    formula, words = "", ""
    for name in rest:
        sign, word = rng.choice((("-", "minus"), ("+", "plus"), ("*", "times"), ("/", "divided by")))
        formula += f"{sign if formula else ''}[@{name}]"
        words += f" {word} {name}" if words else name
    how, said = rng.choice((("", ""), *zip(ROUNDINGS, (" to 2 places", " down to 2 places", " up to 2 places"), strict=True)))
    formula = f"{how}({formula},2)" if how else formula
    said = f", rounded{said}" if how else ""
    return [
        Message("user", f"Fill {target} of {sheet} with {words}{said}."),
        Message("assistant", f"read {sheet}"),
        Message("tool", f"{sheet} {_address(rng)}:{_address(rng)}\n{'|'.join(headers)}"),
        Message("assistant", f"fill {sheet} | {target} | ={formula}"),
        Message("tool", f"{rng.randint(2, 60)} cells, first {rng.randint(0, 4000)}"),
        Message("assistant", "submit"),
    ]


def copy_range(rng: random.Random) -> list[Message]:
    """Copy an address from an observation into a call."""
    sheet, other = rng.sample(_SHEETS, 2)
    target, block = f"{other}!{_address(rng)}", f"{_address(rng)}:{_address(rng)}"
    return [
        Message("user", f"Write where the table of {sheet} lies to {target}."),
        Message("assistant", f"read {sheet}"),
        Message("tool", f"{sheet} {block}\n{'|'.join(rng.sample(_COLUMNS, rng.randint(2, 5)))}"),
        Message("assistant", f"write {target} | {block}"),
        Message("tool", f"{target} is {block}"),
        Message("assistant", "submit"),
    ]


DRILLS = (write_words, fill_named, copy_range)


def make_drill(rng: random.Random) -> tuple[Message, ...]:
    """One drill."""
    return tuple(rng.choice(DRILLS)(rng))
