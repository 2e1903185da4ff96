"""gymnasium's own environments played as workflows, against gymnasium itself."""

import gymnasium
import pytest

from frontier_tune.contracts import BadInput
from frontier_tune.interop.gym import GymnasiumWorkflow
from frontier_tune.sandbox import EnvironmentPool
from frontier_tune.sdk import load_environment
from frontier_tune.sdk.tasks import check_disjoint, draw_tasks

LAKE = {
    "id": "FrozenLake-v1",
    "instruction": "Walk to G, around the holes H.",
    "actions": ["left", "down", "right", "up"],
    "success_at": 1.0,
    "kwargs": {"is_slippery": False, "render_mode": "ansi"},
}
PATH = ["down", "down", "right", "right", "down", "right"]


def test_the_same_actions_give_gymnasium_s_own_rewards_and_views() -> None:
    ours = load_environment("frontier_tune.interop.gym:GymnasiumWorkflow", **LAKE)
    task = draw_tasks(ours, "train", 1, 3)[0]
    theirs = gymnasium.make("FrozenLake-v1", **LAKE["kwargs"])  # type: ignore[arg-type]
    theirs.reset(seed=task.data["seed"])
    messages, _ = ours.reset(options={"task": task})
    assert messages[0].content.endswith(str(theirs.render()))
    for name in PATH:
        messages, reward, terminated, truncated, info = ours.step(f"act {name}")
        _, their_reward, their_end, _, _ = theirs.step(LAKE["actions"].index(name))  # type: ignore[attr-defined]
        assert (messages[0].content, terminated, truncated) == (theirs.render(), their_end, False)
    assert reward == their_reward == 1.0 and info["success"]


def test_a_fall_ends_without_success_and_unknown_actions_are_told() -> None:
    env = GymnasiumWorkflow(**LAKE)  # type: ignore[arg-type]
    env.reset(seed=0)
    assert env.step("act jump")[0][0].content == "error: unknown action 'jump'; actions: left, down, right, up"
    env.step("act right")
    _, reward, terminated, _, info = env.step("act down")
    assert (reward, terminated, info["success"]) == (0.0, True, False)


def test_it_lives_in_a_worker_like_any_other() -> None:
    options = {"id": "test_words:test/Echo-v0", "instruction": "Say yes.", "kwargs": {}}
    with pytest.raises(BadInput, match="test_words"):
        EnvironmentPool("frontier_tune.interop.gym:GymnasiumWorkflow", options=options)
    with EnvironmentPool("frontier_tune.interop.gym:GymnasiumWorkflow", options=LAKE) as pool:
        train, heldout = pool.tasks("train", 20, 0), pool.tasks("heldout", 20, 0)
        check_disjoint(train, heldout)


class Words(gymnasium.Env[str, str]):
    observation_space = gymnasium.spaces.Text(10)
    action_space = gymnasium.spaces.Text(5)

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple[str, dict[str, object]]:
        super().reset(seed=seed)
        return "speak", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, object]]:
        return "heard", float(action == "yes"), True, False, {}


def test_text_spaces_take_the_words_as_they_are() -> None:
    gymnasium.register("test/Words-v0", entry_point=Words, reward_threshold=1.0)
    env = GymnasiumWorkflow("test/Words-v0", "Say yes.")
    env.reset(seed=1)
    assert env.step("act much too long")[0][0].content == "error: 'much too long' is no action here"
    assert env.step("act yes")[1:3] == (1.0, True)


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        ("NoSuchGame-v0", {}, "NoSuchGame"),
        ("FrozenLake-v1", {"actions": ["left"], "success_at": 1}, "1 names for the actions Discrete\\(4\\)"),
        ("Pendulum-v1", {"success_at": 1}, "text or Discrete is needed"),
        ("Blackjack-v1", {}, "set success_at"),
    ],
)
def test_what_cannot_be_played_is_refused(id: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        GymnasiumWorkflow(id, "Play.", **options)  # type: ignore[arg-type]
