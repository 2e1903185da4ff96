"""Bases: load any mixture-of-experts checkpoint, build the nano base from scratch, probe what a base can do."""

from frontier_tune.bases.load import NANO, Base, load

__all__ = ["NANO", "Base", "load"]
