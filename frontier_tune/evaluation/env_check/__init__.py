"""The audit of an environment before anything trains on it: ``check(path, root, options) -> Report``; docs/environments.md."""

from frontier_tune.evaluation.env_check.audit import check
from frontier_tune.evaluation.env_check.report import AgentScore, Check, Report

__all__ = ["AgentScore", "Check", "Report", "check"]
