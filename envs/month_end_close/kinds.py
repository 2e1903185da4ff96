"""All kinds of task by name, in the order in which task sets go through them."""

from __future__ import annotations

from envs.month_end_close.kind import Kind
from envs.month_end_close.lookup_kinds import AccountAverage, AccountTotal, Conversion
from envs.month_end_close.row_kinds import Ageing, NetRevenue, Quarter, Repair, Variance

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (NetRevenue(), AccountTotal(), AccountAverage(), Conversion(), Variance(), Ageing(), Quarter(), Repair())
}
