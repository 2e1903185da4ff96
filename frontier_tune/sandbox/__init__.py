"""Killable worker processes for environments. This side imports neither the SDK nor anything heavy."""

from frontier_tune.sandbox.pool import EnvironmentPool, WorkerStartError

__all__ = ["EnvironmentPool", "WorkerStartError"]
