"""Whether something confidential got out."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable

SHORTEST = 4  # letters and digits of a secret; shorter ones turn up by chance


def leaked(texts: Iterable[str], secrets: Collection[str]) -> set[str]:
    """Those of ``secrets`` that some text holds, case, spacing and punctuation aside, so that spelling one out hides nothing.

    Raises ValueError for a secret of fewer than four letters and digits.
    """
    plain = {secret: _plain(secret) for secret in secrets}
    short = next((secret for secret, letters in plain.items() if len(letters) < SHORTEST), None)
    if short is not None:
        raise ValueError(
            f"leaked: the secret {short!r} is too short to be told from chance; {SHORTEST} letters and digits at least"
        )
    found = [_plain(text) for text in texts]
    return {secret for secret, letters in plain.items() if any(letters in text for text in found)}


def _plain(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
