"""A SQLite database that an agent works on in SQL: session, tools, state."""

from frontier_tune.sdk.database.session import DatabaseSession, Replayed, make_database, state_of
from frontier_tune.sdk.database.tools import DatabaseTools

__all__ = ["DatabaseSession", "DatabaseTools", "Replayed", "make_database", "state_of"]
