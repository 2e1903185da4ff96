"""What an actor refuses when it starts reaches the user as the typed error that it is, not as a process that died."""

from __future__ import annotations

import pytest

from frontier_tune.contracts import BadInput
from frontier_tune.orchestration.cluster import local_ray

pytestmark = pytest.mark.slow


class Refusing:
    def __init__(self, why: str) -> None:
        raise BadInput(why)


class Standing:
    def __init__(self, word: str) -> None:
        self.word = word

    def say(self) -> str:
        return self.word


def test_bad_input_that_only_an_actor_sees_is_bad_input() -> None:
    from frontier_tune.orchestration.actors import remote
    from frontier_tune.orchestration.handle import Handle

    with local_ray():
        refusing = Handle(remote(Refusing, {}, 1).remote("base: its window is too short"), "engine.log")
        standing = Handle(remote(Standing, {}, 1).remote("here"), "engine.log")
        with pytest.raises(BadInput, match="^base: its window is too short$"):
            refusing.get(refusing.submit("started"))
        standing.get(standing.submit("started"))
        assert standing.say() == "here"
