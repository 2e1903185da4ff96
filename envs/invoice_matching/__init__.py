"""Three-way invoice matching. See README.md."""

import gymnasium

from envs.invoice_matching.conventions import Company
from envs.invoice_matching.environment import InvoiceMatching

ENVIRONMENT = InvoiceMatching
GYM_ID = "frontier_tune/InvoiceMatching-v1"

if GYM_ID not in gymnasium.registry:
    gymnasium.register(id=GYM_ID, entry_point="envs.invoice_matching.environment:InvoiceMatching")

__all__ = ["ENVIRONMENT", "GYM_ID", "Company", "InvoiceMatching"]
