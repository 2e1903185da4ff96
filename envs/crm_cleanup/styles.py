"""Writing numbers and names in one of several styles, and writing them as badly as customers' files have them."""

from __future__ import annotations

import random
import re
from typing import Literal

from frontier_tune.sdk.records.vocabulary import VALUES

Style = Literal["international", "national", "dotted", "digits", "title", "upper", "lower", "short"]
NUMBERS: tuple[Style, ...] = ("international", "national", "dotted", "digits")
_SUFFIXES = {suffix.casefold(): suffix for suffix in VALUES["suffix"]}


def styled(text: str, style: Style) -> str:
    """``text`` in ``style``. Raises ValueError for a number that can't be read, or none where one is wanted."""
    return _number(text, style) if style in NUMBERS else _name(text, style)


def _number(text: str, style: Style) -> str:
    digits = re.sub(r"\D", "", text).removeprefix("00")
    if len(digits) != 11 or re.search(r"[A-Za-z]", text):  # country 2, area 3, line 6
        raise ValueError("no number with its country that can be read")
    country, area, line = digits[:2], digits[2:5], digits[5:]
    return {
        "international": f"+{country} {area} {line}",
        "national": f"0{area} {line}",
        "dotted": f"{country}.{area}.{line}",
        "digits": digits,
    }[style]


def _name(text: str, style: Style) -> str:
    words = text.replace(".", " ").split()
    if not words:
        raise ValueError("nothing is there")
    plain = [_SUFFIXES.get(w.casefold(), w.capitalize()) for w in words]
    if style == "short":
        plain = [w for w in plain if w not in _SUFFIXES.values()] or plain
    said = " ".join(plain)
    return said.upper() if style == "upper" else said.lower() if style == "lower" else said


def messy_number(rng: random.Random) -> str:
    """A number with its country, in no style."""
    country, area, line = rng.choice(("31", "33", "44", "49")), f"{rng.randint(100, 999)}", f"{rng.randint(100000, 999999)}"
    return rng.choice(("00{} {} {}", "+{}-{}-{}", "{} ({}) {}", "+{} {}{}")).format(country, area, line)


def messy_name(rng: random.Random, words: list[str]) -> str:
    """Words in no style: capitals mixed, two spaces somewhere."""
    shaped = [words[0].upper(), words[1].lower(), *(rng.choice((w.upper(), w.lower(), w)) for w in words[2:])]
    if rng.random() < 0.5:
        shaped[0], shaped[1] = words[0].lower(), words[1].upper()
    return "  ".join(shaped[:2]) + "".join(f" {w}" for w in shaped[2:])
