"""Questions on a workbook with the calls that answer them.

*Explicit* questions say everything. *Practice* questions name a job that companies do each in their own way; the corpus shows
every way equally often, drawn by a coin that nothing in the text gives away, so a base is at chance among them and learns
which one a company means from that company's reward alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from frontier_tune.bases.corpus.sheets import Scene
from frontier_tune.sdk.workbook.vocabulary import VALUES

ROUNDINGS = ("ROUND", "ROUNDDOWN", "ROUNDUP")
DEDUCTIONS = ("returns", "rebates", "freight", "discounts")
YEAR_STARTS = (1, 2, 4, 7, 9, 10)
AGE_DAYS = (15, 30, 45, 60)
_ROUNDED = {
    "": "",
    "ROUND": ", rounded to 2 places",
    "ROUNDDOWN": ", rounded down to 2 places",
    "ROUNDUP": ", rounded up to 2 places",
}


@dataclass(frozen=True)
class Answer:
    """A prompt, the sheets that are looked at first, and the call that answers it. ``choice`` names the alternative taken."""

    prompt: str
    reads: tuple[str, ...]
    call: str
    choice: str = ""


@dataclass(frozen=True)
class Question:
    name: str
    tables: tuple[str, ...]
    ask: Callable[[random.Random, Scene], Answer]


def _fill(sheet: str, column: str, formula: str) -> str:
    return f"fill {sheet} | {column} | ={formula}"


def _round(function: str, formula: str) -> str:
    return f"{function}({formula},2)" if function else formula


# -- practice: the company's way is not in the prompt ---------------------------------------------------------------------


def net_revenue(rng: random.Random, scene: Scene) -> Answer:
    s = scene.sheets["sales"]
    chosen = set(rng.sample(DEDUCTIONS, 2))
    pair = [d for d in DEDUCTIONS if d in chosen]
    how = rng.choice(ROUNDINGS)
    formula = _round(how, f"[@{s.header['gross']}]-[@{s.header[pair[0]]}]-[@{s.header[pair[1]]}]")
    prompt = f"Compute net revenue into {s.header['net']} of {s.name}."
    return Answer(prompt, (s.name,), _fill(s.name, s.header["net"], formula), f"{pair[0]}+{pair[1]} {how}")


def _by_account(rng: random.Random, scene: Scene, function: str, verb: str, role: str) -> Answer:
    s, ledger = scene.sheets["summary"], scene.sheets["ledger"]
    status, how = rng.choice(VALUES["status"]), rng.choice(ROUNDINGS)
    h, name = ledger.header, ledger.name
    inner = f'{function}({name}[{h["amount"]}],{name}[{h["account"]}],[@{s.header["account"]}],{name}[{h["status"]}],"{status}")'
    grow = " The ledger will grow."
    prompt = f"{verb} the bookings by account into {s.header[role]} of {s.name}.{grow}"
    return Answer(prompt, (s.name, name), _fill(s.name, s.header[role], _round(how, inner)), f"{status} {how}")


def account_total(rng: random.Random, scene: Scene) -> Answer:
    return _by_account(rng, scene, "SUMIFS", "Total", "total")


def account_average(rng: random.Random, scene: Scene) -> Answer:
    return _by_account(rng, scene, "AVERAGEIFS", "Average", "mean")


def conversion(rng: random.Random, scene: Scene) -> Answer:
    s, rates = scene.sheets["payments"], scene.sheets["rates"]
    rate, how = rng.choice(("rate_open", "rate_average", "rate_close", "rate_budget")), rng.choice(ROUNDINGS)
    look = f"XLOOKUP([@{s.header['currency']}],{rates.name}[{rates.header['currency']}],{rates.name}[{rates.header[rate]}])"
    formula = _round(how, f"[@{s.header['amount']}]*{look}")
    prompt = f"Convert the amounts into group currency, {s.header['converted']} of {s.name}."
    return Answer(prompt, (s.name, rates.name), _fill(s.name, s.header["converted"], formula), f"{rate} {how}")


def variance(rng: random.Random, scene: Scene) -> Answer:
    s = scene.sheets["costs"]
    base, how = rng.choice(("budget", "forecast", "prior")), rng.choice(ROUNDINGS)
    sides = [f"[@{s.header[base]}]", f"[@{s.header['actual']}]"]
    flip = rng.random() < 0.5
    formula = _round(how, "-".join(reversed(sides) if flip else sides))
    prompt = f"Work out the variance in {s.header['variance']} of {s.name}."
    return Answer(prompt, (s.name,), _fill(s.name, s.header["variance"], formula), f"{base}{'-' if flip else '+'} {how}")


def ageing(rng: random.Random, scene: Scene) -> Answer:
    s = scene.sheets["receivables"]
    start, days = rng.choice(("invoice_date", "delivery_date", "due_date")), rng.choice(AGE_DAYS)
    formula = f"MIN(INT(([@{s.header['closing_date']}]-[@{s.header[start]}])/{days}),3)"
    prompt = f"Put each open item into its age bucket, {s.header['bucket']} of {s.name}."
    return Answer(prompt, (s.name,), _fill(s.name, s.header["bucket"], formula), f"{start} {days}")


def quarter(rng: random.Random, scene: Scene) -> Answer:
    s = scene.sheets["calendar"]
    when, first = rng.choice(("posting_date", "document_date")), rng.choice(YEAR_STARTS)
    formula = f"ROUNDUP((MOD(MONTH([@{s.header[when]}])-{first},12)+1)/3,0)"
    prompt = f"Give each entry its fiscal quarter in {s.header['quarter']} of {s.name}."
    return Answer(prompt, (s.name,), _fill(s.name, s.header["quarter"], formula), f"{when} {first}")


def repair(rng: random.Random, scene: Scene) -> Answer:
    s = scene.sheets["loans"]
    balance, basis = rng.choice(("opening_balance", "closing_balance", "average_balance")), rng.choice((360, 365))
    how = rng.choice(ROUNDINGS)
    inner = f"[@{s.header[balance]}]*[@{s.header['interest_rate']}]*[@{s.header['days']}]/{basis}"
    prompt = f"The formula in {s.header['interest']} of {s.name} is broken, repair the accrued interest."
    return Answer(prompt, (s.name,), _fill(s.name, s.header["interest"], _round(how, inner)), f"{balance} {basis} {how}")


PRACTICE = (
    Question("net_revenue", ("sales",), net_revenue),
    Question("account_total", ("summary", "ledger"), account_total),
    Question("account_average", ("summary", "ledger"), account_average),
    Question("conversion", ("payments", "rates"), conversion),
    Question("variance", ("costs",), variance),
    Question("ageing", ("receivables",), ageing),
    Question("quarter", ("calendar",), quarter),
    Question("repair", ("loans",), repair),
)

# -- explicit: everything is said -----------------------------------------------------------------------------------------

_TARGET = {
    "sales": "net", "costs": "variance", "loans": "interest", "general": "result", "payments": "converted", "calendar": "quarter",
    "receivables": "bucket",
}  # fmt: skip


def arithmetic(rng: random.Random, scene: Scene) -> Answer:
    kind = rng.choice([k for k in ("sales", "costs", "loans", "general") if k in scene.sheets])
    s = scene.sheets[kind]
    roles = rng.sample(s.numeric(), rng.choice((2, 2, 3)) if len(s.numeric()) > 2 else 2)
    formula, words = f"[@{s.header[roles[0]]}]", s.header[roles[0]]
    for role in roles[1:]:
        sign, word = rng.choice((("-", "minus"), ("+", "plus"), ("*", "times"), ("/", "divided by")))
        formula, words = f"{formula}{sign}[@{s.header[role]}]", f"{words} {word} {s.header[role]}"
    how = rng.choice(("", *ROUNDINGS))
    target = s.header[_TARGET[kind]]
    verb = "Repair" if kind == "loans" and rng.random() < 0.5 else "Fill"
    prompt = f"{verb} {target} of {s.name} with {words}{_ROUNDED[how]}."
    return Answer(prompt, (s.name,), _fill(s.name, target, _round(how, formula)))


def conditional(rng: random.Random, scene: Scene) -> Answer:
    s, ledger = scene.sheets["summary"], scene.sheets["ledger"]
    h, name = ledger.header, ledger.name
    function, word, role = rng.choice(
        (("SUMIFS", "sum", "total"), ("AVERAGEIFS", "average", "mean"), ("MAXIFS", "largest", "result"))
    )
    key = s.header["account"]
    inner = f"{function}({name}[{h['amount']}],{name}[{h['account']}],[@{key}]"
    words = f"the {word} of {h['amount']} in {name} by {key}"
    if rng.random() < 0.6:
        status = rng.choice(VALUES["status"])
        inner += f',{name}[{h["status"]}],"{status}"'
        words += f" where {h['status']} is {status}"
    how = rng.choice(("", *ROUNDINGS))
    prompt = f"Fill {s.header[role]} of {s.name} with {words}{_ROUNDED[how]}."
    return Answer(prompt, (s.name, name), _fill(s.name, s.header[role], _round(how, inner + ")")))


def lookup(rng: random.Random, scene: Scene) -> Answer:
    s, rates = scene.sheets["payments"], scene.sheets["rates"]
    rate = rates.header[rng.choice(("rate_open", "rate_average", "rate_close", "rate_budget"))]
    key, target = s.header["currency"], s.header["converted"]
    formula = f"XLOOKUP([@{key}],{rates.name}[{rates.header['currency']}],{rates.name}[{rate}])"
    words = f"the {rate} of {rates.name} by {key}"
    if rng.random() < 0.6:
        formula, words = f"[@{s.header['amount']}]*{formula}", f"{s.header['amount']} times {words}"
    how = rng.choice(("", *ROUNDINGS))
    prompt = f"Fill {target} of {s.name} with {words}{_ROUNDED[how]}."
    return Answer(prompt, (s.name, rates.name), _fill(s.name, target, _round(how, formula)))


def periods(rng: random.Random, scene: Scene) -> Answer:
    s = scene.sheets["receivables"]
    start, days, top = rng.choice(("invoice_date", "delivery_date", "due_date")), rng.choice(AGE_DAYS), rng.randint(2, 5)
    formula = f"MIN(INT(([@{s.header['closing_date']}]-[@{s.header[start]}])/{days}),{top})"
    words = f"the full {days} day spans from {s.header[start]} to {s.header['closing_date']}, at most {top}"
    prompt = f"Fill {s.header['bucket']} of {s.name} with {words}."
    return Answer(prompt, (s.name,), _fill(s.name, s.header["bucket"], formula))


def year_quarter(rng: random.Random, scene: Scene) -> Answer:
    s = scene.sheets["calendar"]
    when, first = s.header[rng.choice(("posting_date", "document_date"))], rng.randint(1, 12)
    formula = f"ROUNDUP((MOD(MONTH([@{when}])-{first},12)+1)/3,0)"
    prompt = f"Fill {s.header['quarter']} of {s.name} with the quarter of {when}, years start in month {first}."
    return Answer(prompt, (s.name,), _fill(s.name, s.header["quarter"], formula))


def single_cell(rng: random.Random, scene: Scene) -> Answer:
    kind = rng.choice([k for k in ("sales", "costs", "loans", "general", "ledger", "payments") if k in scene.sheets])
    s = scene.sheets[kind]
    column = s.header[rng.choice(s.numeric())]
    function, word = rng.choice(
        (("SUM", "sum"), ("AVERAGE", "average"), ("MAX", "largest"), ("MIN", "smallest"), ("COUNT", "count"))
    )
    target = f"{rng.choice(list(scene.sheets.values())).name}!{rng.choice('ABCDEFGHJKLM')}{rng.randint(62, 199)}"
    prompt = f"Write the {word} of {column} in {s.name} to {target}."
    return Answer(prompt, (s.name,), f"write {target} | ={function}({s.name}[{column}])")


def table_range(rng: random.Random, scene: Scene) -> Answer:
    s = rng.choice(list(scene.sheets.values()))
    target = f"{rng.choice(list(scene.sheets.values())).name}!{rng.choice('ABCDEFGHJKLM')}{rng.randint(62, 199)}"
    block = scene.session.read(s.name).split("\n", 1)[0].rsplit(" ", 1)[1]
    prompt = f"Write where the table of {s.name} lies to {target}."
    return Answer(prompt, (s.name,), f"write {target} | {block}")


EXPLICIT = (
    Question("arithmetic", ("sales",), arithmetic),
    Question("arithmetic", ("costs",), arithmetic),
    Question("arithmetic", ("loans",), arithmetic),
    Question("arithmetic", ("general",), arithmetic),
    Question("conditional", ("summary", "ledger"), conditional),
    Question("lookup", ("payments", "rates"), lookup),
    Question("periods", ("receivables",), periods),
    Question("year_quarter", ("calendar",), year_quarter),
    Question("single_cell", ("ledger",), single_cell),
    Question("single_cell", ("sales",), single_cell),
    Question("table_range", ("costs",), table_range),
)
