"""The kinds of task, by name, in the order in which task sets take turns with them."""

from envs.invoice_matching.database_kinds import DueDate, Duplicates, PriceCheck, QuantityCheck
from envs.invoice_matching.kind import Kind
from envs.invoice_matching.workbook_kinds import CashDiscount, GoodsReceived, Payable, PriceClaim

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (PriceCheck(), Payable(), QuantityCheck(), PriceClaim(), DueDate(), GoodsReceived(), Duplicates(), CashDiscount())
}
