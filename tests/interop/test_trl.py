"""Our workflow as TRL's environment: schemas by transformers' own reader, and a rollout as TRL's loop does it."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from frontier_tune.interop.trl import trl_environment, trl_rows
from frontier_tune.sdk import load_environment

ROOT = Path(__file__).parents[1] / "sandbox" / "workspace"


def public_tools(environment: Any) -> dict[str, Any]:
    """As GRPOTrainer finds them: functions of the class but reset, get_reward and private ones."""
    names = [name for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction)]
    return {n: getattr(environment, n) for n in names if n not in ("reset", "get_reward") and not n.startswith("_")}


def test_transformers_reads_the_schemas_that_we_derive() -> None:
    from transformers.utils import get_json_schema

    tools = public_tools(trl_environment("envs/count_up", ROOT)())
    for ours in load_environment("envs/count_up", ROOT).schemas:
        theirs = get_json_schema(tools[ours["function"]["name"]])["function"]
        assert theirs["name"] == ours["function"]["name"] and theirs["description"] == ours["function"]["description"]
        assert theirs["parameters"]["properties"] == ours["function"]["parameters"]["properties"]
        assert theirs["parameters"].get("required", []) == ours["function"]["parameters"]["required"]


def test_a_rollout() -> None:
    rows = trl_rows(load_environment("envs/count_up", ROOT), "train", 2, 5)
    assert rows[0]["prompt"] == [{"role": "user", "content": "reach 5"}] and json.loads(rows[0]["task"])["kind"] == "count"
    environment = trl_environment("envs/count_up", ROOT)()
    tools = public_tools(environment)
    environment.reset(**rows[0])
    assert tools["add"](amount=5) == "total 5" and tools["submit"]() == "thank you"
    assert environment.get_reward() == 1.0
    assert tools["submit"]() == "error: the episode is over"
    environment.reset(**rows[1])
    assert tools["add"](5) == "total 5"
    assert environment.get_reward() == 0.25  # not handed in: graded as it stands
    with pytest.raises(ValueError, match="unknown argument 'x'"):
        environment.reset(**rows[0])
        tools["add"](x=1)
