"""A workflow that a killed worker leaves locked: its file is there as long as an order is open."""

import os
from pathlib import Path

from defective import Sound

from frontier_tune.sdk import Grade, tool

LOCK = Path(os.environ["STALE_LOCK"])
if LOCK.exists():
    raise RuntimeError("another clerk is at work")


class StaleLock(Sound):
    @tool
    def look(self, item: str) -> str:
        """Look an item's price up.

        Args:
            item: Its name.
        """
        found = super().look(item)
        LOCK.touch()
        return found

    def grade(self) -> Grade:
        LOCK.unlink(missing_ok=True)
        return super().grade()
