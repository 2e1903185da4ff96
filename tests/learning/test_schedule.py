import pytest

from frontier_tune.learning.schedule import learning_rate
from frontier_tune.recipe import Learner


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_warms_up_peaks_and_ends_where_the_recipe_says(kind: str) -> None:
    section = Learner(learning_rate=1.0, warmup_steps=3, schedule=kind, final_lr_ratio=0.1)
    rates = [learning_rate(section, i, 20) for i in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(1.0 if kind == "constant" else 0.1)
    assert learning_rate(section, 500, 20) == pytest.approx(rates[-1])


def test_halfway_values() -> None:
    linear = Learner(learning_rate=2.0, warmup_steps=0, schedule="linear", final_lr_ratio=0.0)
    cosine = Learner(learning_rate=2.0, warmup_steps=0, schedule="cosine", final_lr_ratio=0.0)
    assert learning_rate(linear, 5, 11) == pytest.approx(1.0)
    assert learning_rate(cosine, 5, 11) == pytest.approx(1.0)
    assert learning_rate(cosine, 2, 11) > learning_rate(linear, 2, 11)


def test_one_step_run() -> None:
    assert learning_rate(Learner(learning_rate=1.0, warmup_steps=0), 0, 1) == 1.0
