"""Kinds of task that one UPDATE of the invoices settles."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction

from envs.invoice_matching.books import THOUSAND, Books, Line
from envs.invoice_matching.conventions import CHOICES, Company
from envs.invoice_matching.kind import Answers, DatabaseKind, Names, flagged, lookup

MARGIN = Fraction(1, 10_000)  # relative: no price lies nearer to a limit of tolerance


class PriceCheck(DatabaseKind):
    name = "price_check"
    prompt = "Set {column} of {table} to 1 where the price is out of tolerance. It runs each month."
    conventions = ("tolerance", "sides")
    reads = ("invoices", "orders")
    answer = "hold"
    flags = True
    lines = (32, 48)

    def answers(self, company: Company, books: Books) -> Answers:
        kind, size = company.tolerance
        held = []
        for line in books:
            off = line.price - line.order_price
            off = abs(off) if company.sides == "both" else off
            held.append(off * 100 > size * line.order_price if kind == "percent" else off > size * THOUSAND)
        return flagged(held)

    def assignment(self, company: Company, names: Names) -> str:
        kind, size = company.tolerance
        price = names["invoices"].columns["price"]
        agreed = lookup(names, "orders", names["orders"].columns["order_price"])
        off, most = (f"{price}/{agreed}-1", f"{size / 100:g}") if kind == "percent" else (f"{price}-{agreed}", f"{size}")
        off = f"abs({off})" if company.sides == "both" else off
        return f"{self.column(names)}=1 WHERE {off}>{most}"

    def fits(self, line: Line) -> bool:
        off = Fraction(abs(line.price - line.order_price), line.order_price)
        limits = [
            Fraction(s, 100) if k == "percent" else Fraction(s * THOUSAND, line.order_price) for k, s in CHOICES["tolerance"]
        ]
        return all(abs(off - limit) > MARGIN for limit in limits)


class QuantityCheck(DatabaseKind):
    name = "quantity_check"
    prompt = "Set {column} of {table} to 1 where too much is billed. It runs each month."
    conventions = ("basis", "allowance")
    reads = ("invoices", "orders", "receipts")
    answer = "hold"
    flags = True
    lines = (32, 48)

    def answers(self, company: Company, books: Books) -> Answers:
        most = 100 + company.allowance
        return flagged([line.billed * 100 > most * getattr(line, company.basis) for line in books])

    def assignment(self, company: Company, names: Names) -> str:
        table = "orders" if company.basis == "ordered" else "receipts"
        quantity = lookup(names, table, f"sum({names[table].columns[company.basis]})")
        factor = f"{1 + company.allowance / 100:g}*" if company.allowance else ""
        return f"{self.column(names)}=1 WHERE {names['invoices'].columns['billed']}>{factor}{quantity}"

    def fits(self, line: Line) -> bool:
        limits = [(100 + a) * getattr(line, b) for a in CHOICES["allowance"] if a for b in CHOICES["basis"]]
        return line.billed * 100 not in limits


class DueDate(DatabaseKind):
    name = "due_date"
    prompt = "Work out when each invoice is due, {column} of {table}. It runs each month."
    conventions = ("due_from", "due_days")
    reads = ("invoices", "receipts")
    answer = "due"

    def answers(self, company: Company, books: Books) -> Answers:
        return tuple((getattr(line, company.due_from) + timedelta(days=company.due_days)).isoformat() for line in books)

    def assignment(self, company: Company, names: Names) -> str:
        if company.due_from == "received_on":
            start = lookup(names, "receipts", f"max({names['receipts'].columns['received_on']})")
        else:
            start = names["invoices"].columns[company.due_from]
        return f"{self.column(names)}=date({start},'+{company.due_days} days')"


class Duplicates(DatabaseKind):
    name = "duplicates"
    prompt = "Set {column} of {table} to 1 where an invoice is a duplicate. It runs each month."
    conventions = ("duplicate", "keeps")
    reads = ("invoices",)
    answer = "duplicate"
    flags = True

    def answers(self, company: Company, books: Books) -> Answers:
        kept: dict[tuple[object, ...], int] = {}
        choose = min if company.keeps == "first" else max
        for line in books:
            key = tuple(getattr(line, part) for part in company.duplicate)
            kept[key] = choose(kept.get(key, line.number), line.number)
        return flagged([line.number not in kept.values() for line in books])

    def assignment(self, company: Company, names: Names) -> str:
        columns = names["invoices"].columns
        choose = "min" if company.keeps == "first" else "max"
        group = ",".join(columns[part] for part in company.duplicate)
        kept = f"(SELECT {choose}({columns['number']}) FROM {names['invoices'].name} GROUP BY {group})"
        return f"{self.column(names)}=1 WHERE {columns['number']} NOT IN {kept}"
