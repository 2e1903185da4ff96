"""HR ticket triage under a policy with approvals. See README.md."""

from envs.hr_triage.conventions import Company
from envs.hr_triage.environment import HrTriage

ENVIRONMENT = HrTriage

__all__ = ["ENVIRONMENT", "Company", "HrTriage"]
