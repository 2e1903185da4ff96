"""Names of tables, sheets and columns by the role that they play, and the families in which they are written and laid out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from frontier_tune.sdk.workbook.layouts import FAMILIES as LAYOUTS
from frontier_tune.sdk.workbook.layouts import Family as Layout

# Of the database: names that need no quotes. A key has another name in every table of a database.
TABLES: dict[str, tuple[str, ...]] = {
    "orders": ("Orders", "Purchases", "Contracts", "Bookings"),
    "receipts": ("Receipts", "Deliveries", "Arrivals", "Intake"),
    "invoices": ("Invoices", "Bills", "Vouchers", "Billing"),
}
_QUANTITIES = {
    "ordered": ("Ordered", "Wanted", "Requested", "Agreed"),
    "received": ("Received", "Delivered", "Arrived", "Shipped"),
    "accepted": ("Accepted", "Passed", "Usable", "Kept"),
    "billed": ("Billed", "Quantity", "Pieces", "Invoiced"),
}
_SHARED = {
    **_QUANTITIES,
    "supplier": ("Supplier", "Vendor", "Creditor", "Seller"),
    "owner": ("Owner", "Clerk", "Contact", "Buyer"),
    "freight": ("Freight", "Shipping", "Carriage", "Haulage"),
    "tax": ("Tax", "VAT", "Duty", "Levy"),
    "status": ("Status", "State", "Stage", "Phase"),
}
COLUMNS: dict[str, tuple[str, ...]] = {
    **_SHARED,
    "key": ("PO", "Contract", "Purchase", "Deal", "Commitment"),
    "number": ("Number", "Entry", "Voucher", "Document"),
    "reference": ("Reference", "Ref", "Invoice", "Bill"),
    "order_price": ("Price", "Cost", "Rate", "Tariff"),
    "price": ("Charged", "Each", "Unit", "Asked"),
    "amount": ("Amount", "Total", "Gross", "Value"),
    "ordered_on": ("Signed", "Placed", "Start", "Opened"),
    "received_on": ("Arrival", "Delivery", "Landed", "Unloaded"),
    "invoice_date": ("Dated", "Issued", "Written", "Sent"),
    "posting_date": ("Posted", "Posting", "Booked", "Entered"),
    "hold": ("Hold", "Blocked", "Stop", "Held"),
    "due": ("Due", "Payable", "Deadline", "Expiry"),
    "duplicate": ("Duplicate", "Repeated", "Twice", "Copied"),
}

# Of the workbook.
SHEETS: dict[str, tuple[str, ...]] = {
    "matching": ("Matching", "Comparison", "Checks", "Overview"),
    "order_book": ("Order book", "Commitments", "Backlog", "Summary"),
    "goods_in": ("Goods in", "Journal", "Postings", "Records"),
    "other": ("Notes", "Archive", "Contacts", "Scratch"),
}
HEADERS: dict[str, tuple[str, ...]] = {
    **_SHARED,
    "key": ("Order", "PO", "Contract", "Purchase"),
    "number": ("Number", "Doc no", "Ref", "Reference"),
    "memo": ("Memo", "Note", "Remark", "Text"),
    "price": ("Price", "Unit price", "Each", "Charged"),
    "order_price": ("Order price", "Order rate", "Order cost", "Agreed price"),
    "contract_price": ("Contract price", "Contract rate", "Contract cost", "Fixed price"),
    "list_price": ("List price", "List rate", "List cost", "Tariff"),
    "last_price": ("Last price", "Last rate", "Last cost", "Previous price"),
    "net": ("Net", "Goods", "Net value", "Goods value"),
    "value": ("Value", "Amount", "Worth", "Cost"),
    "payable": ("Payable", "Pay out", "Released", "Approved"),
    "claim": ("Claim", "Difference", "Refunds", "Deviation"),
    "total": ("Total", "Sum", "Balance", "Total value"),
    "discount": ("Discount", "Discounts", "Markdown", "Rebate"),
}
SUPPLIERS = ("Alder", "Birch", "Cedar", "Elm", "Fir", "Hazel", "Maple", "Oak", "Pine", "Rowan", "Spruce", "Willow")
OWNERS = ("Ana", "Ben", "Chen", "Dara", "Eli", "Fay", "Gus", "Ida")
MEMOS = ("checked", "see file", "late", "corrected", "by mail", "urgent", "split", "none")


@dataclass(frozen=True)
class Family:
    """How a company's systems look: the layout of its sheets, and what its database puts before and after a table's name."""

    name: str
    prefix: str = ""
    suffix: str = ""

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.name]

    def table(self, name: str) -> str:
        return self.prefix + name + self.suffix


FAMILIES: dict[str, tuple[Family, ...]] = {
    "train": (
        Family("plain"),
        Family("titled", suffix="_data"),
        Family("shifted", prefix="GL_"),
        Family("gappy"),
        Family("totalled", suffix="_lines"),
        Family("annotated", prefix="Open_"),
    ),
    "heldout": (
        Family("banner", suffix="_items"),
        Family("ragged", prefix="Last_"),
        Family("margin", prefix="GL_", suffix="_data"),
    ),
}
FAMILY = {f.name: f for families in FAMILIES.values() for f in families}


@dataclass(frozen=True)
class TableName:
    """A table of the database or a sheet of the workbook as it is called here: its name, and the name of each role's column."""

    role: str
    name: str
    columns: dict[str, str]

    def own(self, role: str) -> str:
        """The reference to a sheet's column in the formula's own row."""
        return f"[@{self.columns[role]}]"

    def whole(self, role: str) -> str:
        """The reference to a sheet's whole column."""
        return f"{self.name}[{self.columns[role]}]"


def draw_name(rng: random.Random, names: Sequence[str], taken: set[str]) -> str:
    """One of ``names`` that is not ``taken`` yet, whatever its case; it is taken then."""
    chosen = rng.choice([n for n in names if n.casefold() not in taken])
    taken.add(chosen.casefold())
    return chosen
