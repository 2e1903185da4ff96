"""Runs under a Python that has LibreOffice's ``uno``: opens workbooks in a running LibreOffice and tells their values.

    python uno_calculator.py PIPE     (saved_engine.py starts it, and LibreOffice with --accept=pipe,name=PIPE;urp;)

One JSON request a line, one answer a line: {"load": URL} closes the workbook before and opens and calculates this one;
{"sheet": NAME, "block": [row, column, row, column]} gives its values. At the end of the requests LibreOffice is ended.
"""

import json
import sys
import time

import uno
from com.sun.star.beans import PropertyValue
from com.sun.star.connection import NoConnectException

START_S = 60.0


def desktop(pipe):
    """The desktop of the LibreOffice at ``pipe``, waited for."""
    local = uno.getComponentContext()
    resolver = local.ServiceManager.createInstanceWithContext("com.sun.star.bridge.UnoUrlResolver", local)
    end = time.monotonic() + START_S
    while True:
        try:
            context = resolver.resolve(f"uno:pipe,name={pipe};urp;StarOffice.ComponentContext")
            return context.ServiceManager.createInstanceWithContext("com.sun.star.frame.Desktop", context)
        except NoConnectException:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def opened(office, url):
    hidden = PropertyValue()
    hidden.Name, hidden.Value = "Hidden", True
    document = office.loadComponentFromURL(url, "_blank", 0, (hidden,))
    document.calculateAll()
    return document


def values(document, sheet, block):
    first_row, first_column, last_row, last_column = (n - 1 for n in block)
    cells = document.Sheets.getByName(sheet).getCellRangeByPosition(first_column, first_row, last_column, last_row)
    return [[None if value == "" else value for value in row] for row in cells.getDataArray()]


def say(**answer):
    print(json.dumps(answer), flush=True)


def main():
    office, document = desktop(sys.argv[1]), None
    say(result="ready")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "load" in request:
                closing, document = document, None
                if closing is not None:
                    closing.close(True)
                document = opened(office, request["load"])
                say(result=None)
            else:
                say(result=values(document, request["sheet"], request["block"]))
        except Exception as e:  # UNO's exceptions share no base but this; whoever asked is told
            say(error=f"{type(e).__name__}: {e}")
    if document is not None:
        document.close(True)
    office.terminate()


if __name__ == "__main__":
    main()
