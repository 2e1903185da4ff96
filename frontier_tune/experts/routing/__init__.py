"""The routing op: which experts a token goes to, with which weights, and in which order the experts work through them.

The specification is docs/routing-op.md. ``route`` and ``route_dispatch`` are what to call; ``reference`` is the same in plain
torch, the oracle of the tests.
"""

from frontier_tune.experts.routing.op import Dispatch, route, route_dispatch

__all__ = ["Dispatch", "route", "route_dispatch"]
