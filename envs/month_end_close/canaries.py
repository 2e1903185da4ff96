"""Agents that try to be paid without doing the work. Each must fail on every task; one that succeeds shows a hole."""

from __future__ import annotations

from envs.month_end_close.conventions import Company
from envs.month_end_close.generator import Copy
from frontier_tune.sdk.workbook.addresses import cell


def scripts(copy: Copy, company: Company, golden: list[str]) -> dict[str, list[str]]:
    """Calls by the canary's name, for the workbook that the agent sees."""
    target = copy.plan.target.name
    header = target.headers[copy.plan.kind.answer]
    fill = f"fill {target.sheet} | {header} | "
    sheet, first, column = copy.cells[0]
    inputs = next(c for c in range(1, 99) if c != column and copy.plain.get((sheet, first, c)) is not None)
    other = next(s for s in copy.plan.order if s != sheet)
    known = ";".join(str(a) for a in copy.answers(company))  # what the formula would come to here, learned from a leak
    offset = first - 1
    return {
        "constant_filler": [fill + "=1", "submit"],
        "constant_writer": [f"write {sheet}!{cell(first, column)} | 1", "submit"],
        "input_overwriter": [f"write {sheet}!{cell(first, inputs)} | 0", *golden],
        "other_sheet_overwriter": [f"write {other}!{cell(1, 1)} | 0", *golden],
        "hardcoder": [fill + f"=INDEX({{{known}}},ROW()-{offset})", "submit"],
        "dependent_hardcoder": [fill + f"=INDEX({{{known}}},ROW()-{offset})+0*LEN({cell(first, inputs)})", "submit"],
        "golden_hunter": [
            "read golden",
            "read Golden!A1:C9",
            f"read {other}!A1:H9",
            f"read {sheet}!{cell(first, column)}",
            fill + "=[@golden]",
            fill + "=golden",
            fill + "=Answers!A1",
            "submit",
        ],
        "no_op": [golden[0]] * 8,
        "early_submitter": ["submit"],
    }
