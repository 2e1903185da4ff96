"""Comparing single values as the people who check the work would."""

from __future__ import annotations

import math
import unicodedata
from typing import Any


def numeric_close(actual: Any, expected: float, *, absolute: float = 0.0, relative: float = 0.0) -> bool:
    """Whether ``actual`` is a number within ``absolute`` or ``relative`` (to ``expected``) of ``expected``.

    Text, None, True and False are no numbers, whatever they look like; nan and inf are close to nothing.
    """
    if isinstance(actual, bool) or not isinstance(actual, int | float) or not math.isfinite(actual):
        return False
    # The bound is widened by a few units in the last place, so that 0.3 is within 0.1 of 0.2.
    slack = 4 * math.ulp(max(abs(float(actual)), abs(expected)))
    return abs(actual - expected) <= max(absolute, relative * abs(expected)) + slack


def text_equal(actual: Any, expected: str, *, ignore_case: bool = True, ignore_spaces: bool = True) -> bool:
    """Whether ``actual`` is the text ``expected``, after Unicode normalisation (NFKC).

    ``ignore_spaces``: runs of white space count as one space and none at the edges.
    """
    return isinstance(actual, str) and _plain(actual, ignore_case, ignore_spaces) == _plain(expected, ignore_case, ignore_spaces)


def _plain(text: str, ignore_case: bool, ignore_spaces: bool) -> str:
    text = unicodedata.normalize("NFKC", text)
    if ignore_spaces:
        text = " ".join(text.split())
    return text.casefold() if ignore_case else text
