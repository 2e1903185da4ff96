"""Functions that an environment may restrict its formulas to: those whose values are held against Excel's, case by case.

Engines differ in the corners of what they offer, and a reward must not hang on which engine calculated it. Each function here
has a case worked by Excel's own definition in tests/sdk/workbook/test_functions.py, which this engine must meet, and LibreOffice,
too, where it is installed. ``WorkbookSession(book, functions=AGREED)`` refuses formulas that call any other.
"""

from __future__ import annotations

AGREED = frozenset(
    (
        # sums, counts and statistics
        "SUM AVERAGE MIN MAX COUNT COUNTA COUNTBLANK MEDIAN PRODUCT SUMPRODUCT SUMIF SUMIFS COUNTIF COUNTIFS AVERAGEIF "
        "AVERAGEIFS MAXIFS MINIFS LARGE SMALL RANK STDEV.S VAR.S "
        # arithmetic
        "ROUND ROUNDUP ROUNDDOWN INT TRUNC ABS SIGN MOD QUOTIENT POWER SQRT EXP LN LOG10 CEILING FLOOR MROUND "
        # conditions
        "IF IFS IFERROR IFNA AND OR NOT XOR SWITCH CHOOSE "
        # look-up
        "VLOOKUP HLOOKUP INDEX MATCH XLOOKUP XMATCH LOOKUP ROW COLUMN ROWS COLUMNS "
        # text
        "LEFT RIGHT MID LEN TRIM UPPER LOWER PROPER CONCATENATE CONCAT TEXTJOIN SUBSTITUTE REPLACE FIND SEARCH EXACT "
        "REPT VALUE "
        # dates
        "DATE YEAR MONTH DAY EDATE EOMONTH WEEKDAY DAYS NETWORKDAYS WORKDAY YEARFRAC DATEDIF "
        # what a cell holds
        "ISNUMBER ISTEXT ISBLANK ISERROR ISNA N "
        # money over time
        "PMT NPV PV FV SLN "
    ).split()
)
