"""Names that real workbooks give to their sheets and columns, by the role that they play.

Generators of workbooks (environments, corpora) draw from here, so that a model meets the same thing under many names.
A name stands for one role only, apart from names that no workbook holds on one sheet.
"""

from __future__ import annotations

COLUMNS: dict[str, tuple[str, ...]] = {
    # keys
    "account": ("Account", "GL account", "Acct", "Ledger account", "Nominal"),
    "region": ("Region", "Area", "Territory", "Zone"),
    "customer": ("Customer", "Client", "Buyer", "Debtor"),
    "product": ("Product", "Item", "SKU", "Article"),
    "currency": ("Currency", "Ccy", "Curr code", "Cur"),
    "department": ("Department", "Dept", "Cost center", "Unit"),
    # sales
    "gross": ("Gross sales", "Gross", "Billed", "Turnover", "Invoiced"),
    "returns": ("Returns", "Returned goods", "Refunds", "Credit notes"),
    "rebates": ("Rebates", "Rebate", "Bonus paid", "Kickback"),
    "freight": ("Freight", "Shipping", "Carriage", "Haulage"),
    "discounts": ("Discounts", "Discount", "Markdown", "Price cuts"),
    "net": ("Net revenue", "Net sales", "Net", "Revenue net"),
    # ledger
    "amount": ("Amount", "Value", "Posted value", "Sum booked"),
    "status": ("Status", "State", "Stage", "Booking state"),
    "total": ("Total", "Sum", "Balance total", "Total value"),
    "mean": ("Average", "Mean", "Average value", "Avg"),
    # exchange rates
    "rate_open": ("Opening rate", "Start rate", "Rate at open", "First rate"),
    "rate_average": ("Average rate", "Mean rate", "Avg rate", "Monthly rate"),
    "rate_close": ("Closing rate", "End rate", "Rate at close", "Final rate"),
    "rate_budget": ("Budget rate", "Plan rate", "Planned rate", "Target rate"),
    "converted": ("Converted", "Group currency", "In group money", "Translated"),
    # budgets
    "actual": ("Actual", "Actuals", "Spent", "Actual cost"),
    "budget": ("Budget", "Budgeted", "Plan", "Allowance"),
    "forecast": ("Forecast", "Outlook", "Projection", "Estimate"),
    "prior": ("Prior year", "Last year", "Previous", "Year before"),
    "variance": ("Variance", "Deviation", "Difference", "Gap"),
    # receivables
    "invoice_date": ("Invoice date", "Invoiced on", "Bill date", "Issued"),
    "due_date": ("Due date", "Due", "Payable by", "Due on"),
    "delivery_date": ("Delivery date", "Delivered", "Shipped on", "Handed over"),
    "closing_date": ("As of", "Closing date", "Cut off", "Key date"),
    "bucket": ("Bucket", "Age class", "Age band", "Ageing"),
    "open_amount": ("Open amount", "Outstanding", "Unpaid", "Still open"),
    # calendar
    "posting_date": ("Posting date", "Posted on", "Booked on", "Entry date"),
    "document_date": ("Document date", "Doc date", "Voucher date", "Dated"),
    "quarter": ("Quarter", "Fiscal quarter", "Qtr", "Period"),
    # loans
    "opening_balance": ("Opening balance", "Start balance", "Brought forward", "Balance before"),
    "closing_balance": ("Closing balance", "End balance", "Carried forward", "Balance after"),
    "average_balance": ("Average balance", "Mean balance", "Avg balance", "Balance between"),
    "interest_rate": ("Interest rate", "Rate", "Coupon", "Percent"),
    "days": ("Days", "Day count", "Number of days", "Days run"),
    "interest": ("Interest", "Accrued", "Accrual", "Interest due"),
    # general
    "quantity": ("Quantity", "Qty", "Pieces", "Count"),
    "price": ("Price", "Unit price", "Each", "Price per piece"),
    "tax": ("Tax", "VAT", "Duty", "Levy"),
    "fee": ("Fee", "Charge", "Commission", "Handling"),
    "hours": ("Hours", "Time spent", "Worked", "Effort"),
    "result": ("Result", "Outcome", "Answer", "Output"),
    "memo": ("Memo", "Note", "Remark", "Text"),
    "reference": ("Reference", "Ref", "Number", "Doc no"),
    "owner": ("Owner", "Clerk", "Handled by", "Contact"),
}

SHEETS: dict[str, tuple[str, ...]] = {
    "sales": ("Sales", "Orders", "Invoices", "Billing"),
    "ledger": ("Ledger", "Journal", "Postings", "Bookings"),
    "summary": ("Summary", "Overview", "Report", "Totals"),
    "rates": ("Rates", "Exchange", "FX table", "Fixings"),
    "payments": ("Payments", "Cash", "Bank lines", "Receipts"),
    "costs": ("Costs", "Spending", "Cost lines", "Expenses"),
    "receivables": ("Receivables", "Open items", "Debtors", "Arrears"),
    "calendar": ("Entries", "Vouchers", "Documents", "Records"),
    "loans": ("Loans", "Debt", "Borrowings", "Credit lines"),
    "other": ("Notes", "Archive", "Contacts", "Scratch", "Read me", "Old data", "Checks"),
}

VALUES: dict[str, tuple[str, ...]] = {
    "account": (
        "Travel",
        "Rent",
        "Wages",
        "Energy",
        "Software",
        "Training",
        "Insurance",
        "Repairs",
        "Postage",
        "Legal",
        "Audit",
        "Advertising",
    ),
    "region": ("North", "South", "East", "West", "Coast", "Inland"),
    "customer": ("Alder", "Birch", "Cedar", "Elm", "Fir", "Hazel", "Maple", "Oak", "Pine", "Rowan", "Spruce", "Willow"),
    "product": ("Bolt", "Cable", "Drill", "Filter", "Gasket", "Hinge", "Lamp", "Motor", "Pump", "Valve"),
    "currency": ("EUR", "GBP", "CHF", "SEK", "JPY", "CAD", "AUD", "NOK"),
    "department": ("Plant", "Lab", "Office", "Store", "Depot", "Kitchen"),
    "status": ("Posted", "Approved", "Cleared", "Closed"),
    "owner": ("Ana", "Ben", "Chen", "Dara", "Eli", "Fay", "Gus", "Ida"),
    "memo": ("checked", "see file", "late", "corrected", "by mail", "urgent", "split", "none"),
    "total_label": ("Total", "Grand total", "Sum total"),
}
