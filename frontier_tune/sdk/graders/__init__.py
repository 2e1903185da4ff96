"""Small pure functions that rubrics are composed of."""

from frontier_tune.sdk.graders.cells import CellError, CellKind, Tolerance, cell_equal, cell_kind, range_differences
from frontier_tune.sdk.graders.leaks import leaked
from frontier_tune.sdk.graders.state import StateDiff, changes_made, locked_digest, only_changed, share_equal, state_diff
from frontier_tune.sdk.graders.values import numeric_close, text_equal

__all__ = [
    "CellError",
    "CellKind",
    "StateDiff",
    "Tolerance",
    "cell_equal",
    "cell_kind",
    "changes_made",
    "leaked",
    "locked_digest",
    "numeric_close",
    "only_changed",
    "range_differences",
    "share_equal",
    "state_diff",
    "text_equal",
]
