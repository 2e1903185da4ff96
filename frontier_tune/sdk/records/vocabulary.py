"""Names that desks and customer files give to their fields, by role; as ``sdk.workbook.vocabulary`` for sheets.

Generators of records (environments, corpora) draw from here. A name stands for one role only.
"""

from __future__ import annotations

FIELDS: dict[str, tuple[str, ...]] = {
    # a request at a desk
    "owner": ("Employee", "Raised by", "Sender"),
    "state": ("State", "Status", "Stage"),
    "received": ("Received", "Came in", "Opened"),
    "channel": ("Channel", "Reached us by", "Way in"),
    "language": ("Language", "Tongue", "Speaks"),
    # what a request may lack
    "cover": ("Cover", "Stand-in", "Substitute"),
    "reason": ("Reason", "Ground", "Cause"),
    "place": ("Place", "Whereabouts", "Destination"),
    "receipt": ("Receipt", "Voucher", "Slip"),
    "project": ("Project", "Job", "Assignment"),
    "purpose": ("Purpose", "Used for", "Aim"),
    "room": ("Room", "Desk", "Floor"),
    "model": ("Model", "Type", "Make"),
    "provider": ("Provider", "School", "Trainer"),
    "witness": ("Witness", "Seen by", "Bystander"),
    "wish": ("Wish", "Hope", "Remedy"),
    # who an employee is
    "unit": ("Department", "Unit", "Section"),
    "badge": ("Badge", "Card", "Pass number"),
    "birthday": ("Birthday", "Born", "Date of birth"),
    "tax": ("Tax number", "Tax ID", "Fiscal number"),
    "site": ("Site", "Office", "Location"),
    # who decides
    "lead": ("Lead", "Team lead", "Supervisor"),
    "head": ("Head", "Director", "Unit head"),
    "partner": ("HR partner", "Advisor", "People partner"),
    "controller": ("Controller", "Budget owner", "Finance"),
    "payroll": ("Payroll", "Pay clerk", "Wages clerk"),
    "counsel": ("Counsel", "Mediator", "Ombudsman"),
    "council": ("Works council", "Delegate", "Staff council"),
    "doctor": ("Doctor", "Medical officer", "Health officer"),
    # a customer
    "name": ("Name", "Customer", "Client"),
    "legal": ("Legal name", "Registered as", "Firm"),
    "brand": ("Brand", "Trade name", "Known as"),
    "phone": ("Phone", "Telephone", "Main line"),
    "mobile": ("Mobile", "Cell", "Handy"),
    "direct": ("Direct line", "Extension", "Desk line"),
    "town": ("Town", "City", "Seat"),
    "source": ("Source", "Origin", "Found by"),
    "region": ("Region", "Area", "Territory"),
    "industry": ("Industry", "Sector", "Line"),
    "segment": ("Segment", "Tier", "Class"),
    "keeper": ("Account owner", "Key contact", "Handled by"),
    "mail_ok": ("Mail consent", "Mail allowed", "May mail"),
    "call_ok": ("Call consent", "Call allowed", "May call"),
    "post_ok": ("Post consent", "Post allowed", "May write"),
    "last_order": ("Last order", "Last bought", "Latest sale"),
    # a territory's people
    "rep": ("Rep", "Seller", "Field agent"),
    "deputy": ("Deputy", "Second", "Backup"),
    "support": ("Support", "Service", "Help desk"),
    "manager": ("Manager", "Chief", "Boss"),
    # what nobody else may see
    "credit": ("Credit line", "Credit limit", "Limit"),
    "margin": ("Margin", "Special price", "Rebate rate"),
    "remark": ("Private note", "Confidential", "Inner remark"),
}

PEOPLE: tuple[str, ...] = (
    "Ana", "Ben", "Chen", "Dara", "Eli", "Fay", "Gus", "Ida", "Jan", "Kim",
    "Lou", "Max", "Nia", "Olga", "Paul", "Rita", "Sam", "Tess", "Uma", "Vera",
)  # fmt: skip

VALUES: dict[str, tuple[str, ...]] = {
    "reason": ("Family", "Moving", "Health", "Study", "Travel", "Noise", "Shift", "Upgrade"),
    "place": ("Aachen", "Bergen", "Calais", "Dover", "Essen", "Faro", "Ghent", "Hull"),
    "purpose": ("Fair", "Visit", "Repair", "Audit", "Launch", "Stock", "Pilot", "Archive"),
    "model": ("Compact", "Desktop", "Folding", "Heavy", "Light", "Portable", "Standard", "Wide"),
    "provider": ("Academy", "College", "Guild", "Institute", "Lab", "Online", "School", "Studio"),
    "wish": ("Apology", "Leave", "Move", "Quiet", "Review", "Talk", "Training", "Written"),
    "channel": ("Mail", "Phone", "Portal", "Counter"),
    "language": ("English", "German", "French", "Dutch"),
    "unit": ("Plant", "Lab", "Office", "Store", "Depot", "Kitchen"),
    "site": ("North", "South", "East", "West", "Coast", "Inland"),
    "source": ("Fair", "Mail", "Phone", "Web"),
    "region": ("North", "South", "East", "West"),
    "industry": ("Food", "Paper", "Steel", "Textile"),
    "segment": ("Gold", "Silver", "Bronze", "Basic"),
    "firm": ("Alder", "Birch", "Cedar", "Elm", "Fir", "Hazel", "Maple", "Oak", "Pine", "Rowan", "Spruce", "Willow"),
    "trade": ("Bakery", "Depot", "Farm", "Garage", "Mill", "Office", "Press", "Store", "Tools", "Works"),
    "suffix": ("Ltd", "Inc", "GmbH", "AG"),
}
