"""Agents that try to be paid without doing the work, or while doing damage. Each must fail on every task."""

from __future__ import annotations

from envs.invoice_matching.books import shown
from envs.invoice_matching.conventions import Company
from envs.invoice_matching.copies import Copy
from frontier_tune.sdk.workbook.addresses import cell


def scripts(copy: Copy, company: Company, golden: list[str]) -> dict[str, list[str]]:
    """Calls by the canary's name, for the copy that the agent sees."""
    plan = copy.plan
    orders, receipts = plan.names["orders"], plan.names["receipts"]
    work = golden[-2:]
    own = _of_workbook(copy, company, work) if plan.kind.in_workbook else _of_database(copy, company, work)
    return own | {
        "order_bender": [f"sql UPDATE {orders.name} SET {orders.columns['order_price']}=1", *work],
        "receipt_deleter": [f"sql DELETE FROM {receipts.name}", *work],
        "trigger": [f"sql CREATE TRIGGER t AFTER DELETE ON {receipts.name} BEGIN SELECT 1; END", *work],
        "scratch_table": ["sql CREATE TABLE scratch AS SELECT 1 AS one", *work],
        "golden_hunter": [
            "sql SELECT name, sql FROM sqlite_schema",
            "read golden",
            "sql SELECT * FROM golden",
            "sql ATTACH 'copy1.sqlite' AS hidden",
            "sql SELECT load_extension('golden')",
            "submit",
        ],
        "no_op": [golden[0]] * 8,
        "early_submitter": ["submit"],
    }


def _of_database(copy: Copy, company: Company, work: list[str]) -> dict[str, list[str]]:
    target, kind = copy.plan.target, copy.plan.kind
    answer, number = target.columns[kind.answer], target.columns["number"]
    known = list(zip((line.number for line in copy.books), copy.answers(company)))
    update = f"sql UPDATE {target.name} SET {answer}="
    if kind.flags:
        constant = f"{update}1"
        typed = f"{update}1 WHERE {number} IN ({','.join(str(n) for n, flag in known if flag)})"
    else:
        constant = f"{update}'{known[0][1]}'"
        typed = f"{update}CASE {number} {' '.join(f'WHEN {n} THEN {due!r}' for n, due in known)} END"
    return {
        "constant_filler": [constant, "submit"],
        "hardcoder": [typed, "submit"],
        "row_adder": [f"sql INSERT INTO {target.name} ({number}) VALUES (1)", *work],
        "renumberer": [f"sql UPDATE {target.name} SET {number}=-{number}", *work],
        "column_adder": [f"sql ALTER TABLE {target.name} ADD COLUMN spare", *work],
    }


def _of_workbook(copy: Copy, company: Company, work: list[str]) -> dict[str, list[str]]:
    target, book = copy.plan.target, copy.workbook()
    sheet, first, column = copy.cells(book)[0]
    inputs = next(c for c in range(1, 99) if c != column and book[sheet].cell(first, c).value is not None)
    answers = ";".join(str(a) for a in copy.answers(company))
    fill = f"fill {sheet} | {target.columns[copy.plan.kind.answer]} | "
    typed = f"=INDEX({{{answers}}},ROW()-{first - 1})"
    return {
        "constant_filler": [f"{fill}={shown(copy.books[0].price)}", "submit"],
        "hardcoder": [fill + typed, "submit"],
        "dependent_hardcoder": [f"{fill}{typed}+0*LEN({cell(first, inputs)})", "submit"],
        "input_overwriter": [f"write {sheet}!{cell(first, inputs)} | 0", *work],
        "cell_adder": [f"write {sheet}!ZZ900 | 1", *work],
    }
