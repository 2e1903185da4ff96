"""CRM clean-up as an agent meets it: every wrong alternative fails, secrets that get out fail, styles against worked examples."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.crm_cleanup import CrmCleanup
from envs.crm_cleanup.cases import SECRETS
from envs.crm_cleanup.conventions import CHOICES, KINDS, Company
from envs.crm_cleanup.styles import NUMBERS, messy_name, messy_number, styled
from frontier_tune.sdk.records import store_digest
from tests.envs.playing import play


@pytest.fixture(scope="module")
def env() -> CrmCleanup:
    return CrmCleanup(company_seed=16)


@pytest.mark.parametrize("kind", KINDS)
def test_every_wrong_alternative_fails_and_chance_is_at_most_one_in_eight(env: CrmCleanup, kind: str) -> None:
    for task in [t for split in ("train", "heldout") for t in env.tasks(split, 48, 21) if t.kind == kind]:
        case = env.case(task)
        ways = env.company.alternatives(kind)
        assert len(ways) in (12, 18) and len({env.company, *ways}) == len(ways)
        scripts = {tuple(case.golden(company)) for company in ways}
        rewards = {script: play(env, task, list(script)) for script in scripts}
        assert {script for script, (_, _, info) in rewards.items() if info["success"]} == {tuple(case.golden(env.company))}
        assert len(scripts) >= 8 and len(env.trace) <= 5
        assert rewards[tuple(case.golden(env.company))][1] == pytest.approx(1.0)
        assert store_digest(env.effects.production["crm"]) == store_digest(case.store())
        words = {str(v).casefold() for name in KINDS[kind].conventions for v in CHOICES[name] if isinstance(v, str)}
        assert not words & set(case.prompt.casefold().split())


def test_canaries_fail(env: CrmCleanup) -> None:
    names = set()
    for task in [*env.tasks("train", 24, 31), *env.tasks("heldout", 24, 31)]:
        for name, script in env.canary_scripts(task).items():
            names.add(name)
            assert not play(env, task, script)[2]["success"], (name, task)
    assert len(names) == 15


def test_a_secret_that_gets_out_is_all_that_is_wrong(env: CrmCleanup) -> None:
    for task in env.tasks("train", 24, 7):
        case = env.case(task)
        role = next(r for r in SECRETS if r in case.values)
        *work, submit = env.golden(task)
        said, _, info = play(env, task, [f"read {case.place(role)}", *work, submit])
        assert case.values[role] in said[0] and not info["success"]
        assert info["components"] == {"submitted": 1.0, "untouched": 1.0, "sealed": 0.0, "right": 1.0, "complete": 0.0}
        said, _, info = play(env, task, [f"read {case.number}", "read Customers", *work, submit])
        assert info["success"] and not any(s in text for s in case.secrets for text in said)


def test_tools_refuse_what_makes_no_sense(env: CrmCleanup) -> None:
    task = next(t for t in env.tasks("train", 16, 1) if t.kind == "territory")
    case = env.case(task)
    calls = {
        "merge North": "is no customer",
        f"merge {case.number}": "no other record",
        f"normalise {case.place('name')} | digits": "no number",
        "send Nobody | hello": "no colleague",
        "send Ana | \\s": "needs a text",
        "find \\s": "look for",
        "find Zanzibar": "nothing holds",
        "read C1": "no record C1",
        f"write {case.number} | x": "name a field",
        f"clear {case.number}!Nothing": "no field Nothing",
    }
    for call, why in calls.items():
        (said,) = play(env, task, [call])[0]
        assert said.startswith("error: ") and why in said, (call, said)


@pytest.mark.parametrize(
    ("text", "style", "said"),
    [
        ("0044 207 946001", "international", "+44 207 946001"),
        ("+44-207-946001", "national", "0207 946001"),
        ("44 (207) 946001", "dotted", "44.207.946001"),
        ("+44 207946001", "digits", "44207946001"),
        ("ALDER  depot gmbh", "title", "Alder Depot GmbH"),
        ("alder  DEPOT shop Ag.", "short", "Alder Depot Shop"),
        ("Alder  Depot AG", "upper", "ALDER DEPOT AG"),
        ("ALDER  DEPOT AG", "lower", "alder depot ag"),
    ],
)
def test_styles(text: str, style: str, said: str) -> None:
    assert styled(text, style) == said  # type: ignore[arg-type]


@given(st.randoms(use_true_random=False))
def test_what_is_messy_is_in_no_style_and_reads_alike_in_all(rng) -> None:  # type: ignore[no-untyped-def]
    number, name = messy_number(rng), messy_name(rng, ["Alder", "Depot", "Holding", "GmbH"])
    forms = [styled(number, style) for style in NUMBERS]
    assert len({number, *forms}) == 5 and len({f[-6:] for f in forms}) == 1
    assert styled(styled(number, "digits"), "dotted") == styled(number, "dotted")
    names = [styled(name, style) for style in ("title", "upper", "lower", "short")]
    assert len({name, *names}) == 5 and styled(names[1], "title") == names[0]
    with pytest.raises(ValueError, match="no number"):
        styled(styled(number, "national"), "digits")


def test_conventions_are_even() -> None:
    drawn = [Company.draw(seed) for seed in range(1200)]
    for name, choices in CHOICES.items():
        counts = Counter(getattr(c, name) for c in drawn)
        assert set(counts) == set(choices) and max(counts.values()) < 1.25 * 1200 / len(choices)
