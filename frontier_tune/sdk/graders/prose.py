"""Length and language of what somebody wrote."""

from __future__ import annotations

import re
from typing import Literal

# The words that a language can't do without; counted, none of them a content word.
_COMMON: dict[str, frozenset[str]] = {
    code: frozenset(words.split())
    for code, words in {
        "en": "the of and to in is that it for was on are with as his they be at this have from or had by not but we you",
        "de": "der die das und ist nicht ein eine zu den mit sich von auf für im dem des es wir sie ich auch als an wird",
        "fr": "le la les et est une des du que dans pour qui pas sur au avec il elle nous vous ce sont par plus ne se",
        "es": "el la los las y es una que en del por con para no se su al lo como más pero sus le ya este ha muy",
        "it": "il la che di e un una per non sono con del della si lo gli dei alla nel ma come anche più è ha le",
        "nl": "de het een en van is dat niet op te zijn met voor er aan ook als bij maar om nog wij hij zij wordt dit",
        "pt": "o a os as e é um uma que em do da não para com por se mais como mas ao ele das dos seu sua foi são",
    }.items()
}
_LEAST, _LEAD = 3, 1.5  # common words that have to be there, and how many more than of the next language


def word_count(text: str) -> int:
    """Words: runs of letters and digits, with apostrophes and hyphens between them."""
    return len(re.findall(r"\w+(?:['\u2019-]\w+)*", text))


def sentence_count(text: str) -> int:
    """Sentences: pieces that end with . ! or ? before a space or the end; a last piece without an end counts."""
    return sum(bool(re.search(r"\w", piece)) for piece in re.split(r"[.!?]+(?=\s|$)", text))


def length_within(text: str, least: int, most: int, unit: Literal["characters", "words", "sentences"] = "words") -> bool:
    """Whether ``text`` is of ``least`` to ``most`` characters, words or sentences; white space at its edges doesn't count."""
    if least > most:
        raise ValueError(f"length_within: nothing is between {least} and {most}")
    count = {"characters": lambda t: len(t.strip()), "words": word_count, "sentences": sentence_count}[unit]
    return least <= count(text) <= most


def language_of(text: str) -> str | None:
    """ISO 639-1 code of the language, of seven that are known, or None where too few of its commonest words tell.

    For a sentence or more; names, numbers and code tell nothing.
    """
    words = re.findall(r"[^\W\d_]+", text.casefold())
    counts = sorted(((sum(w in common for w in words), code) for code, common in _COMMON.items()), reverse=True)
    (first, code), (second, _) = counts[:2]
    return code if first >= _LEAST and first >= _LEAD * second else None


def is_language(text: str, code: str) -> bool:
    """Whether ``text`` is in the language ``code``. Raises ValueError for one that is not known."""
    if code not in _COMMON:
        raise ValueError(f"is_language: '{code}' is not known; known: {', '.join(_COMMON)}")
    return language_of(text) == code
