"""What the tests of engines score, how far apart two scorings are, and several versions in one step of the engine."""

import threading

import torch

from tests import tiny


def tokens(n, seed=0):
    return torch.randint(2, tiny.VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


SEQUENCES = [tokens(n, n) for n in (40, 7, 200, 2)]


def gap(a, b):
    """Mean distance of log-probabilities, nats a token."""
    flat = [abs(x - y) for xs, ys in zip(a, b, strict=True) for x, y in zip(xs, ys, strict=True)]
    return sum(flat) / len(flat)


def at_once(sampler, versions):
    """SEQUENCES under each version, all in one batch: asked for while the engine's thread is held up, for its next step."""
    found = {}

    def score(version):
        found[version] = sampler.score(SEQUENCES, version)

    threads = [threading.Thread(target=score, args=(v,)) for v in versions]
    sampler._call(lambda backend: [t.start() for t in threads] and threads[0].join(0.3))
    for t in threads:
        t.join()
    return found
