"""What a run will need: tasks, tokens, memory by part and device, disk, time. From recipe and config.json alone."""

from frontier_tune.orchestration.plan.capability import missing, require
from frontier_tune.orchestration.plan.describe import describe
from frontier_tune.orchestration.plan.machine import available_memory, cgroup_left, size
from frontier_tune.orchestration.plan.plans import Plan, make, require_here, require_resources
from frontier_tune.orchestration.plan.sizes import adapter_parameters, count_parameters
from frontier_tune.orchestration.plan.work import past_speed

__all__ = [
    "Plan",
    "adapter_parameters",
    "available_memory",
    "cgroup_left",
    "count_parameters",
    "describe",
    "make",
    "missing",
    "past_speed",
    "require",
    "require_here",
    "require_resources",
    "size",
]
