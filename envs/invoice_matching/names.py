"""Names of tables, sheets and columns by the role that they play, and the families in which they are written and laid out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from frontier_tune.sdk.workbook.layouts import FAMILIES as LAYOUTS
from frontier_tune.sdk.workbook.layouts import Family as Layout

# Of the database: names that need no quotes. A key has another name in every table of a database.
TABLES: dict[str, tuple[str, ...]] = {
    "orders": ("Orders", "Purchases", "Contracts", "Requests"),
    "receipts": ("Receipts", "Deliveries", "Arrivals", "Inbound"),
    "invoices": ("Invoices", "Bills", "Vouchers", "Billing"),
}
COLUMNS: dict[str, tuple[str, ...]] = {
    "key": ("PO", "Order_no", "Order_ref", "Contract", "Purchase"),
    "number": ("Number", "Doc_no", "Voucher", "Entry"),
    "reference": ("Reference", "Their_ref", "Bill_no", "Supplier_ref"),
    "supplier": ("Supplier", "Vendor", "Creditor", "Seller"),
    "product": ("Product", "Item", "Article", "SKU"),
    "owner": ("Owner", "Clerk", "Handler", "Contact"),
    "ordered": ("Ordered", "Order_qty", "Wanted", "Requested"),
    "received": ("Received", "Delivered", "Arrived", "Qty_in"),
    "accepted": ("Accepted", "Passed", "Usable", "Qty_good"),
    "billed": ("Billed", "Quantity", "Qty", "Pieces"),
    "order_price": ("Price", "Agreed", "Unit_price", "Order_price"),
    "price": ("Each", "Charged", "Billed_price", "Price_billed"),
    "freight": ("Freight", "Shipping", "Carriage", "Haulage"),
    "tax": ("Tax", "VAT", "Duty", "Levy"),
    "amount": ("Amount", "Total", "Gross", "Payable"),
    "ordered_on": ("Order_date", "Ordered_on", "Placed", "Signed"),
    "received_on": ("Arrival", "Received_on", "Delivery_date", "Dock_date"),
    "invoice_date": ("Dated", "Invoice_date", "Issued", "Bill_date"),
    "posting_date": ("Posted", "Posting_date", "Booked", "Entry_date"),
    "status": ("Status", "State", "Stage", "Condition"),
    "hold": ("Hold", "Blocked", "Stop", "Held"),
    "due": ("Due", "Due_on", "Payable_by", "Pay_date"),
    "duplicate": ("Duplicate", "Repeated", "Twice", "Copied"),
}

# Of the workbook.
SHEETS: dict[str, tuple[str, ...]] = {
    "matching": ("Matching", "Comparison", "Check list", "Worksheet"),
    "order_book": ("Order book", "Open orders", "Commitments", "Backlog"),
    "goods_in": ("Goods in", "Dock log", "Intake", "Unloading"),
    "other": ("Notes", "Archive", "Contacts", "Scratch"),
}
HEADERS: dict[str, tuple[str, ...]] = {
    "key": ("Order number", "Order", "PO number", "Our order"),
    "number": ("Number", "Doc no", "Ref", "Reference"),
    "supplier": ("Supplier", "Vendor", "Creditor", "Seller"),
    "owner": ("Owner", "Clerk", "Handled by", "Contact"),
    "memo": ("Memo", "Note", "Remark", "Text"),
    "ordered": ("Ordered", "Order qty", "Quantity ordered", "Wanted"),
    "received": ("Received", "Delivered", "Quantity in", "Arrived"),
    "accepted": ("Accepted", "Passed", "Usable", "Quantity good"),
    "billed": ("Billed", "Quantity", "Qty", "Pieces"),
    "price": ("Price", "Unit price", "Each", "Price per piece"),
    "order_price": ("Order price", "Ordered at", "Agreed price", "Our price"),
    "contract_price": ("Contract price", "Frame price", "Contract rate", "Fixed price"),
    "list_price": ("List price", "Catalogue", "Tariff", "Public price"),
    "last_price": ("Last price", "Paid before", "Earlier price", "Previous price"),
    "net": ("Net", "Goods", "Goods value", "Net amount"),
    "freight": ("Freight", "Shipping", "Carriage", "Haulage"),
    "tax": ("Tax", "VAT", "Duty", "Levy"),
    "value": ("Value", "Amount", "Receipt value", "Worth"),
    "status": ("Status", "State", "Stage", "Booking state"),
    "payable": ("Payable", "To pay", "Released", "Approved amount"),
    "claim": ("Claim", "Debit note", "Charge back", "Price claim"),
    "total": ("Total", "Sum", "Total value", "Goods total"),
    "discount": ("Discount", "Cash discount", "Deduction", "Early payment"),
}
SUPPLIERS = ("Alder", "Birch", "Cedar", "Elm", "Fir", "Hazel", "Maple", "Oak", "Pine", "Rowan", "Spruce", "Willow")
PRODUCTS = ("Bolt", "Cable", "Drill", "Filter", "Gasket", "Hinge", "Lamp", "Motor", "Pump", "Valve")
OWNERS = ("Ana", "Ben", "Chen", "Dara", "Eli", "Fay", "Gus", "Ida")
MEMOS = ("checked", "see file", "late", "corrected", "by mail", "urgent", "split", "none")


@dataclass(frozen=True)
class Family:
    """How a company's systems look: the layout of its sheets, and how its database writes names."""

    name: str
    lower: bool = False
    prefix: str = ""
    suffix: str = ""

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.name]

    def table(self, name: str) -> str:
        return self.prefix + self.column(name) + self.suffix

    def column(self, name: str) -> str:
        return name.lower() if self.lower else name


FAMILIES: dict[str, tuple[Family, ...]] = {
    "train": (
        Family("plain"),
        Family("titled", lower=True),
        Family("shifted", lower=True, prefix="ap_"),
        Family("gappy", prefix="T_"),
        Family("totalled", lower=True, suffix="_all"),
        Family("annotated", suffix="_log"),
    ),
    "heldout": (
        Family("banner", lower=True, prefix="fin_"),
        Family("ragged", suffix="_tab"),
        Family("margin", lower=True, prefix="ap_", suffix="_log"),
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
