"""Small pure functions that rubrics are composed of."""

from frontier_tune.sdk.graders.state import StateDiff, locked_digest, only_changed, share_equal, state_diff
from frontier_tune.sdk.graders.values import numeric_close, text_equal

__all__ = ["StateDiff", "locked_digest", "numeric_close", "only_changed", "share_equal", "state_diff", "text_equal"]
