"""CRM clean-up: dedupe, normalise, hand over, without letting a secret out. See README.md."""

from envs.crm_cleanup.conventions import Company
from envs.crm_cleanup.environment import CrmCleanup

ENVIRONMENT = CrmCleanup

__all__ = ["ENVIRONMENT", "Company", "CrmCleanup"]
