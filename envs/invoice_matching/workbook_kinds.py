"""Kinds of task that one formula settles, filled down a column of a sheet."""

from __future__ import annotations

from envs.invoice_matching.books import Books, Line, tied
from envs.invoice_matching.conventions import CHOICES, Company
from envs.invoice_matching.kind import Answers, Names, WorkbookKind, rounded


class Payable(WorkbookKind):
    name = "payable"
    prompt = "Work out what may be paid, {column} of {sheet}."
    conventions = ("basis", "freight", "rounding")
    reads = ("matching",)
    answer = "payable"
    columns = ("number", "ordered", "received", "accepted", "billed", "price", "freight")

    def answers(self, company: Company, books: Books) -> Answers:
        return tuple(rounded(company, self._due(line, company.basis, company.freight)) for line in books)

    def formula(self, company: Company, names: Names) -> str:
        s = names["matching"]
        due = f"MIN({s.own('billed')},{s.own(company.basis)})*{s.own('price')}"
        due += f"+{s.own('freight')}" if company.freight == "paid" else ""
        return f"{company.rounding}({due},2)"

    def fits(self, line: Line) -> bool:
        return not any(tied(self._due(line, b, f)) for b in CHOICES["basis"] for f in CHOICES["freight"])

    @staticmethod
    def _due(line: Line, basis: str, freight: str) -> int:
        return min(line.billed, int(getattr(line, basis))) * line.price + (line.freight if freight == "paid" else 0)


class PriceClaim(WorkbookKind):
    name = "price_claim"
    prompt = "Claim the price difference back, {column} of {sheet}."
    conventions = ("reference_price", "rounding")
    reads = ("matching",)
    answer = "claim"
    columns = ("number", "billed", "price", "order_price", "contract_price", "list_price", "last_price")

    def answers(self, company: Company, books: Books) -> Answers:
        return tuple(rounded(company, self._claim(line, company.reference_price)) for line in books)

    def formula(self, company: Company, names: Names) -> str:
        s = names["matching"]
        return f"{company.rounding}(({s.own('price')}-{s.own(company.reference_price)})*{s.own('billed')},2)"

    def fits(self, line: Line) -> bool:
        return not any(tied(self._claim(line, reference)) for reference in CHOICES["reference_price"])

    @staticmethod
    def _claim(line: Line, reference: str) -> int:
        return (line.price - int(getattr(line, reference))) * line.billed


class GoodsReceived(WorkbookKind):
    name = "goods_received"
    prompt = "Total the receipts by order into {column} of {sheet}."
    conventions = ("receipt_status", "rounding")
    reads = ("order_book", "goods_in")
    answer = "total"
    columns = ("key", "ordered", "order_price")
    lines, parts = (12, 20), (3, 4, 5, 6)

    def answers(self, company: Company, books: Books) -> Answers:
        return tuple(rounded(company, self._total(line, company.receipt_status)) for line in books)

    def formula(self, company: Company, names: Names) -> str:
        s, goods = names["order_book"], names["goods_in"]
        inner = f'{goods.whole("value")},{goods.whole("key")},{s.own("key")},{goods.whole("status")},"{company.receipt_status}"'
        return f"{company.rounding}(SUMIFS({inner}),2)"

    def fits(self, line: Line) -> bool:
        totals = [self._total(line, status) for status in CHOICES["receipt_status"]]
        return not any(total and tied(total) for total in totals)

    @staticmethod
    def _total(line: Line, status: str) -> int:
        return sum(part.value for part in line.parts if part.status == status)


class CashDiscount(WorkbookKind):
    name = "cash_discount"
    prompt = "Work out the cash discount, {column} of {sheet}."
    conventions = ("discount_base", "discount_rate", "rounding")
    reads = ("matching",)
    answer = "discount"
    columns = ("number", "supplier", "net", "freight", "tax")

    def answers(self, company: Company, books: Books) -> Answers:
        return tuple(rounded(company, self._base(line, company.discount_base) * company.discount_rate, 100) for line in books)

    def formula(self, company: Company, names: Names) -> str:
        s = names["matching"]
        base = "+".join(s.own(role) for role in company.discount_base)
        base = f"({base})" if len(company.discount_base) > 1 else base
        return f"{company.rounding}({base}*{company.discount_rate}/100,2)"

    def fits(self, line: Line) -> bool:
        bases = [self._base(line, base) for base in CHOICES["discount_base"]]
        return not any(tied(base * rate, 100) for base in bases for rate in CHOICES["discount_rate"])

    @staticmethod
    def _base(line: Line, roles: tuple[str, ...]) -> int:
        return sum(int(getattr(line, role)) for role in roles)
