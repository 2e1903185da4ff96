"""Month-end close in a workbook. See README.md."""

import gymnasium

from envs.month_end_close.conventions import Company
from envs.month_end_close.environment import MonthEndClose

ENVIRONMENT = MonthEndClose
GYM_ID = "frontier_tune/MonthEndClose-v1"

if GYM_ID not in gymnasium.registry:
    gymnasium.register(id=GYM_ID, entry_point="envs.month_end_close.environment:MonthEndClose")

__all__ = ["ENVIRONMENT", "GYM_ID", "Company", "MonthEndClose"]
