"""Routes captured in vLLM: by request and position, through chunks, mixed batches and prefix-cache hits, into the learner."""

import random

import numpy as np
import pytest

from frontier_tune import recipe
from frontier_tune.contracts import EpisodeSpec, Request, SamplingParams, Task, Trajectory
from tests import tiny

pytestmark = pytest.mark.slow
LENGTH = 48


def exchange(sampler, requests):
    done = sampler.exchange(requests)
    while len(done) < len(requests):
        done += sampler.exchange([])
    found = {c.request_id: c for c in done}
    return [found[r.id] for r in requests]


def ask(name, tokens, seed, routes_from=0):
    return Request(name, tuple(tokens), SamplingParams(LENGTH, seed=seed), routes_from)


@pytest.fixture
def sampler(setups):
    """A sampler in bfloat16 that keeps routes and serves an adapter that changes nothing, and its base."""
    setup = setups("qwen3_moe", "bfloat16")
    setup.sampler.sync(setup.write("zero-routes", std=0.0), setup.next_version())
    return setup.sampler, setup.base


def episodes(sampler, groups=6, members=4):
    """Two sampled turns each, with other tokens between; prompts of a group are the same and span blocks of the cache."""
    draw = random.Random(0)
    prompts = [[draw.randrange(2, tiny.VOCABULARY) for _ in range(draw.randrange(40, 90))] for _ in range(groups)]
    played = []
    for turn in range(2):
        requests = []
        for i in range(groups * members):
            if not turn:
                played.append(Trajectory(EpisodeSpec(Task("k", "train", {"g": i // members}), i // members, i % members, i)))
            t = played[i]
            seen = prompts[i // members] if not turn else [draw.randrange(2, tiny.VOCABULARY) for _ in range(7)]
            t.tokens, t.mask, t.logprobs = t.tokens + seen, t.mask + [False] * len(seen), t.logprobs + [0.0] * len(seen)
            requests.append(ask(f"{turn}-{i}", t.tokens, 100 * turn + i, 0 if t.routes is None else len(t.routes)))
        for t, c in zip(played, exchange(sampler, requests), strict=True):
            t.tokens, t.mask = t.tokens + list(c.tokens), t.mask + [True] * len(c.tokens)
            t.logprobs = t.logprobs + list(c.logprobs)
            t.routes = c.routes if t.routes is None else np.concatenate([t.routes, c.routes])
            assert c.routes.dtype == np.uint8 and t.routes.shape == (len(t.tokens) - 1, 2, 2)
    return played


def test_replaying_the_samplers_routes_brings_the_learner_closer_to_it(sampler):
    from frontier_tune.learning.learner import Learner

    engine, base = sampler
    played = episodes(engine)

    def measured(*overrides):
        content = {"adapter": {"rank": 4, "alpha": 6}, "learner": {"threads": 1, "device": "cpu"}, "sampler": {"routes": True}}
        return Learner(base, recipe.parse(content, overrides)).update(played, [1.0, -1.0] * (len(played) // 2))

    free, replayed = measured(), measured("algorithm.replay=sampler")
    # Routes at other tokens or layers would agree by chance alone, one in fifteen.
    assert 0 < free["route_flips_layer"] < 0.1 and replayed["route_flips"] > 0
    assert free["kl_sampler_flipped"] > 2 * free["kl_sampler_kept"]
    assert replayed["kl_sampler"] < 0.7 * free["kl_sampler"] and replayed["logprob_gap"] < free["logprob_gap"]


def test_a_prefix_cache_hit_gives_the_routes_of_what_it_reuses(sampler):
    engine, _ = sampler
    draw = random.Random(1)
    tokens = [draw.randrange(2, tiny.VOCABULARY) for _ in range(150)]
    (first,) = exchange(engine, [ask("a", tokens, 1)])
    other = [draw.randrange(2, tiny.VOCABULARY) for _ in range(150)]
    again, beside = exchange(engine, [ask("b", tokens, 1), ask("c", other, 2)])
    assert len(first.routes) == 150 + len(first.tokens) - 1
    assert (first.routes[:128] == again.routes[:128]).all()  # blocks of 32 tokens: the first four are in the cache
    assert (beside.routes[:128] != first.routes[:128]).any()
    longer = [*tokens, *first.tokens]
    (rest,) = exchange(engine, [ask("d", longer, 3, routes_from=len(first.routes))])
    assert len(rest.routes) == len(rest.tokens)  # the last sampled token of the turn before, and those after it but the last
