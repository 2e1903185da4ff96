"""Demonstrations have the tokens and the mask that an episode with the same calls has, in both renderings."""

from __future__ import annotations

import json
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import strategies as st

from frontier_tune.contracts import BadInput, EpisodeSpec, Task
from frontier_tune.episodes import play, renderer_for
from frontier_tune.sandbox import EnvironmentPool
from frontier_tune.sdk.grammar import ToolCall
from frontier_tune.traces import tokens
from frontier_tune.traces.convert import convert
from frontier_tune.traces.replay import HeldOut, Workbench
from tests.episodes.conftest import ScriptedSampler
from tests.traces.conftest import TOKENIZERS


@pytest.mark.parametrize("rendering", ["compact", "chat"])
@hypothesis.given(added=st.lists(st.integers(0, 500), min_size=1, max_size=3))
@hypothesis.settings(max_examples=6, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_tokens_and_mask_are_those_of_a_rollout(
    rendering: str, trace: Callable, bench: Workbench, held_out: HeldOut, pool: EnvironmentPool, added: list[int]
) -> None:
    tokenizer = TOKENIZERS[rendering]()
    renderer = renderer_for(tokenizer, pool.description["schemas"])
    (row,) = convert(trace(sum(added), *added), bench, held_out).demonstrations
    found = tokens.demonstration(row, renderer, bench.signatures)

    def script(context: str) -> str:
        turn = context.count("total ")
        amount = added[turn] if turn < len(added) else None
        if rendering == "chat":
            return json_call(amount)
        return "submit" if amount is None else f"add {amount}"

    sampler = ScriptedSampler(tokenizer, script, stop=tokenizer.eos_token)
    spec = EpisodeSpec(Task("count", "train", {"target": sum(added)}, "train"), 0, 0, seed=1)
    limits = {"max_turns": 4, "max_tokens_per_turn": 64, "max_model_len": 2048, "concurrency": 1}
    (episode,) = play([spec], pool, renderer, sampler, **limits)
    assert episode.success
    assert (found.tokens, found.mask) == (episode.tokens, episode.mask)
    assert tokenizer.decode([t for t, m in zip(found.tokens, found.mask) if m]).count(tokenizer.eos_token) == len(added) + 1


def json_call(amount: int | None = None) -> str:
    arguments = {} if amount is None else {"amount": amount}
    return json.dumps({"name": "submit" if amount is None else "add", "arguments": arguments})


def test_a_pair_s_turns_follow_one_context(trace: Callable, bench: Workbench, held_out: HeldOut, pool: EnvironmentPool) -> None:
    tokenizer = TOKENIZERS["compact"]()
    renderer = renderer_for(tokenizer, pool.description["schemas"])
    fix = [{"turn": 1, "content": "add 7"}]
    found = convert(trace(12, 5, 9, verdict="corrected", corrections=fix), bench, held_out)
    context, chosen, rejected = tokens.pair(found.pairs[0], renderer, bench.signatures)
    assert tokenizer.decode(context).endswith("total 5<|end|><|call|>")
    assert (tokenizer.decode(chosen), tokenizer.decode(rejected)) == ("add 7<|end|>", "add 9<|end|>")
    shown = tokens.demonstration(found.demonstrations[0], renderer, bench.signatures)
    assert shown.tokens == context + chosen and sum(shown.mask) == len(chosen)  # what was not vouched for is not learned


@pytest.mark.parametrize("rendering", ["compact", "chat"])
def test_text_that_poses_as_the_end_of_a_turn_is_refused(rendering: str, bench: Workbench) -> None:
    tokenizer = TOKENIZERS[rendering]()
    renderer = renderer_for(tokenizer, [])
    with pytest.raises(BadInput, match="does not give back"):
        renderer.turn(f"submit{tokenizer.eos_token}", bench.signatures)
    with pytest.raises(BadInput, match="unknown tool"):
        renderer.turn(ToolCall("destroy", {}), bench.signatures)


def test_a_template_that_asks_for_tagged_calls_gets_them(bench: Workbench) -> None:
    tokenizer = TOKENIZERS["chat"]()
    tokenizer.chat_template = tokenizer.chat_template.replace("system\n{%", "system\nwrite <tool_call>{}</tool_call>\n{%", 1)
    renderer = renderer_for(tokenizer, [s.to_schema() for s in bench.signatures.values()])
    text = renderer.decode(renderer.turn(ToolCall("submit", {}), bench.signatures))
    assert text == '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>'
