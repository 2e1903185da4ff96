"""Refusals of the route store; what it captures is tested against an engine in tests/sampling."""

from types import SimpleNamespace

import pytest

from frontier_tune.contracts import BadInput
from frontier_tune.experts.vllm_plugin_routes import RouteStore


def test_a_base_with_several_kinds_of_cache_is_refused():
    runner = SimpleNamespace(kv_cache_config=SimpleNamespace(kv_cache_groups=["full", "window"]))
    with pytest.raises(BadInput, match="2 groups of KV caches"):
        RouteStore(runner, (0, 1), 8, 2)
