"""Invoice matching: each company's own way succeeds, every other fails; damage, typed-in answers and cheats are not paid."""

import pytest

from envs.invoice_matching import InvoiceMatching
from envs.invoice_matching.kinds import KINDS
from frontier_tune.contracts import BadInput, Task
from frontier_tune.sandbox.code import CodeSandbox
from frontier_tune.sdk import load_environment
from tests.envs.invoice_matching.conftest import play


def of_kind(env: InvoiceMatching, kind: str, split: str = "train", seed: int = 21) -> Task:
    return next(t for t in env.tasks(split, len(KINDS), seed) if t.kind == kind)  # type: ignore[arg-type]


def test_loads_by_path() -> None:
    env = load_environment("envs/invoice_matching", company_seed=3)
    assert type(env).__name__ == "InvoiceMatching" and set(env.signatures) == {"read", "sql", "fill", "write", "submit"}
    with pytest.raises(BadInput, match="company_seed"):
        InvoiceMatching(company_seed=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_wrong_alternative_fails(env: InvoiceMatching, sandbox: CodeSandbox, kind: str) -> None:
    """The company's own way succeeds; each of the others does not, and chance is at most 1 in 8."""
    ways = env.company.alternatives(KINDS[kind].conventions)
    assert len(ways) >= 8 and len(set(ways)) == len(ways)
    task, other = of_kind(env, kind, "heldout" if len(kind) % 2 else "train"), InvoiceMatching()
    for company in ways:
        other.company = company
        _, reward, info = play(env, task, other.golden(task))
        assert info["success"] is (company == env.company), company
        assert info["success"] == (reward == 1.0) and reward >= 0.15


def test_prompts_say_nothing_of_the_company(env: InvoiceMatching) -> None:
    """Companies see the same tasks, byte for byte, and need other calls."""
    other = InvoiceMatching(company_seed=4)
    calls = 0
    for task in env.tasks("train", 16, 3):
        assert env.reset(options={"task": task})[0] == other.reset(options={"task": task})[0]
        assert env.golden(task)[:-2] == other.golden(task)[:-2]
        calls += env.golden(task)[-2] != other.golden(task)[-2]
    assert calls > 8


@pytest.mark.parametrize("kind", ["quantity_check", "due_date", "goods_received"])
def test_cheats_and_damage_are_not_paid(env: InvoiceMatching, kind: str) -> None:
    for name, script in env.canary_scripts(of_kind(env, kind)).items():
        seen, reward, info = play(env, of_kind(env, kind), script)
        assert not info["success"] and info["failure"] is None and reward < 0.6, (name, seen)


def test_damage_is_seen_wherever_it_is_done(env: InvoiceMatching) -> None:
    task = of_kind(env, "price_check")
    plan, work = env.plan(task), env.golden(task)[-2:]
    invoices, receipts = plan.target, plan.names["receipts"]
    damage = [
        f"sql UPDATE {receipts.name} SET {receipts.columns['received']}=NULL WHERE rowid=1",
        f"sql INSERT INTO {receipts.name} DEFAULT VALUES",
        f"sql CREATE INDEX i ON {receipts.name} ({receipts.columns['key']})",
        f"sql UPDATE {invoices.name} SET {invoices.columns['billed']}={invoices.columns['billed']}+1",
    ]
    for call in damage:
        _, reward, info = play(env, task, [call, *work])
        assert info["components"] == {"submitted": 1, "untouched": 0, "derived": 1, "close": 0, "exact": 0}, call
        assert reward == pytest.approx(0.1)
    _, _, info = play(env, task, [damage[-1], damage[-1].replace("+1", "-1"), *work])  # taken back: nothing is damaged
    assert info["success"]
    task = of_kind(env, "payable")
    _, _, info = play(env, task, [f"sql DELETE FROM {env.plan(task).names['orders'].name}", *env.golden(task)[-2:]])
    assert info["components"]["untouched"] == 0 and not info["success"]


def test_setting_all_or_none_is_worth_nothing(env: InvoiceMatching) -> None:
    task = of_kind(env, "duplicates")
    target = env.plan(task).target
    update = f"sql UPDATE {target.name} SET {target.columns['duplicate']}="
    for value in ("1", "0", "2"):
        _, _, info = play(env, task, [update + value, "submit"])
        assert info["components"]["exact"] == info["components"]["close"] == 0


def test_observations(env: InvoiceMatching) -> None:
    task = of_kind(env, "due_date")
    target, table = env.plan(task).target, env.database if hasattr(env, "database") else None
    seen, _, _ = play(env, task, [f"read {target.name}", "read nothing", "fill a | b | =1", "sql SELEC 1", "sql SELECT 1 AS one"])
    assert table is None or table is not env.database
    head, columns, first = seen[1].split("\n")
    assert head.startswith(f"{target.name} ") and head.endswith(" rows") and columns.split("|") == list(target.columns.values())
    assert len(first.split("|")) == len(target.columns) and f"{target.name} " in seen[0]
    assert seen[2].startswith("error: no table nothing; tables: ") and seen[3] == "error: there is no workbook here"
    assert seen[4] == 'error: near "SELEC": syntax error' and seen[5] == "1 rows\none\n1"


def test_the_same_episode_twice_and_with_used_sessions(env: InvoiceMatching, sandbox: CodeSandbox) -> None:
    tasks = [of_kind(env, kind, "heldout") for kind in ("price_claim", "duplicates")]
    first = [play(env, t, env.golden(t)) for t in tasks]
    sheet = env.plan(tasks[0]).target.name
    play(env, tasks[0], [f"write {sheet}!B3 | 12", f"write {sheet}!Z9 | =1/0", "submit"])
    fresh = InvoiceMatching(company_seed=7)
    fresh.attach_code(sandbox)
    assert [play(fresh, t, fresh.golden(t)) for t in tasks] == first


def test_without_a_sandbox_no_statement_runs() -> None:
    env = InvoiceMatching()
    env.reset(options={"task": of_kind(env, "due_date")})
    assert env.step("sql SELECT 1")[4]["failure"]["kind"] == "no-sandbox"
