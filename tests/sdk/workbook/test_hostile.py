"""Workbooks and formulas that reach out of the file (other workbooks, DDE, programs) or far into it: nothing opens or hangs."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from openpyxl import Workbook

from frontier_tune.sdk import ToolError
from frontier_tune.sdk.workbook.functions import AGREED
from frontier_tune.sdk.workbook.session import WorkbookSession
from tests.sdk.workbook.conftest import make_book

OUTSIDE = (
    "='[Other.xlsx]Sheet1'!A1",
    "=[1]Sheet1!A1",
    "='C:\\x\\[Other.xlsx]Sheet1'!A1",
    "='file:///etc/passwd'#$Sheet1.A1",
    "=cmd|'/c calc'!A0",
    "=Excel.Sheet.8|'x'!'!a'",
    '=WEBSERVICE("http://192.0.2.1")',
    '=HYPERLINK("http://192.0.2.1")',
    '=RTD("a","b")',
)
UNKNOWN = (  # no function of this engine: an error value, and refused where functions are restricted
    '=DDE("a","b","c")',
    '=CALL("a","b")',
    '=REGISTER.ID("a","b")',
    '=EXEC("calc")',
    '=SQL.REQUEST("a")',
    '=IMAGE("http://192.0.2.1")',
    '=FILTERXML("<a/>","//a")',
    '=STOCKHISTORY("x")',
    '=CUBEVALUE("x")',
)


@pytest.mark.parametrize("formula", OUTSIDE)
def test_formulas_that_reach_out_are_refused(session: WorkbookSession, formula: str) -> None:
    with pytest.raises(ToolError):
        session.write("Sales!G9", formula)
    assert not session.changed


@pytest.mark.parametrize("formula", UNKNOWN)
def test_functions_that_reach_out_are_unknown(session: WorkbookSession, formula: str) -> None:
    assert session.write("Sales!G9", formula) == "Sales!G9 is #NAME?"
    with pytest.raises(ToolError, match="is not available here"):
        WorkbookSession(make_book(), AGREED).write("Sales!G9", formula)


def test_an_indirect_reference_to_another_workbook_is_an_error(session: WorkbookSession) -> None:
    assert session.write("Sales!G9", """=INDIRECT("'[Other.xlsx]Sheet1'!A1")""") == "Sales!G9 is #REF!"


def test_far_cells_cost_what_near_ones_do(session: WorkbookSession) -> None:
    """The last cell and whole columns are reachable; no rectangle between is ever made."""
    assert session.write("Sales!XFD1048576", "5") == "Sales!XFD1048576 is 5"
    assert session.write("Sales!G9", "=XFD1048576*2+SUM(XFD:XFD)") == "Sales!G9 is 15"
    assert session.read("Sales!XFD1048570:XFD1048576").endswith("\n5")
    again = WorkbookSession(session.book)  # loaded cell by cell, not as a block of 17 thousand million
    assert again.engine.value("Sales", 9, 7) == 15 and len(session.book["Sales"]._cells) < 40
    for text in ("=XFE1", "=A1048577"):
        assert session.write("Sales!G9", text) == "Sales!G9 is #NAME?"
    with pytest.raises(ToolError, match="takes at most"):
        session.write("Sales!G9", "=MEDIAN(A:XFD)")


LINK = b"""<?xml version="1.0" encoding="UTF-8"?>
<externalLink xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"
 xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships">%s</externalLink>"""
BOOK = b'<externalBook r:id="rId1"><sheetNames><sheetName val="Sheet1"/></sheetNames></externalBook>'
DDE = b'<ddeLink ddeService="cmd" ddeTopic="/c calc"><ddeItems><ddeItem name="A0" advise="1"/></ddeItems></ddeLink>'
TARGET = (
    b'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rId1" Type="http://'
    b'schemas.openxmlformats.org/officeDocument/2006/relationships/externalLinkPath" Target="%s" TargetMode="External"/>'
    b"</Relationships>"
)
PART = "xl/externalLinks/externalLink1.xml"
# Reads workbooks, and tells of each what it held and which files and addresses were opened meanwhile.
READ = """
import json, sys
from pathlib import Path
from frontier_tune.sdk.workbook.snapshot import read_snapshot
outside, *paths = map(Path, sys.argv[1:])
read_snapshot(outside)  # what is imported late is imported now
seen, found = [], []
def hook(event, arguments):
    if event in ("open", "os.listdir", "subprocess.Popen", "os.system") or event.startswith("socket."):
        seen.append(str(arguments[0]))
sys.addaudithook(hook)
for path in paths:
    seen.clear()
    sheet = read_snapshot(path).sheets["Sheet"]
    found.append([list(sheet.values.values()), [f.text for f in sheet.formulas.values()], sorted(set(seen))])
print(json.dumps(found))
"""


def linked(path: Path, link: bytes) -> None:
    """A workbook whose A1 is linked to outside, with 7 as the value that was saved for it."""
    book = Workbook()
    book.active["A1"] = "=[1]Sheet1!A1"
    book.save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    parts[sheet] = parts[sheet].replace(b"</f><v />", b"</f><v>7</v>").replace(b"</f><v/>", b"</f><v>7</v>")
    assert b"<v>7</v>" in parts[sheet]
    parts[PART] = LINK % link
    parts["xl/externalLinks/_rels/externalLink1.xml.rels"] = TARGET % path.with_name("outside.xlsx").as_uri().encode()
    names = (
        b'<Override PartName="/%s" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.externalLink+xml"/>'
    )
    parts["[Content_Types].xml"] = parts["[Content_Types].xml"].replace(b"</Types>", names % PART.encode() + b"</Types>")
    rels = b'<Relationship Id="rId99" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/externalLink" '
    rels += b'Target="externalLinks/externalLink1.xml"/></Relationships>'
    workbook = "xl/_rels/workbook.xml.rels"
    parts[workbook] = parts[workbook].replace(b"</Relationships>", rels)
    reference = (
        b'<externalReferences><externalReference xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships" '
    )
    reference += b'r:id="rId99"/></externalReferences>'
    parts["xl/workbook.xml"] = parts["xl/workbook.xml"].replace(b"</sheets>", b"</sheets>" + reference)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def test_links_of_a_saved_workbook_are_not_followed(tmp_path: Path) -> None:
    """What was saved beside the link is its value; the target, which exists, is not opened, nor anything else."""
    outside, paths = tmp_path / "outside.xlsx", [tmp_path / "workbook.xlsx", tmp_path / "dde.xlsx"]
    Workbook().save(outside)
    for path, link in zip(paths, (BOOK, DDE)):
        linked(path, link)
    command = [sys.executable, "-c", READ, str(outside), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[[7], ["[1]Sheet1!A1"], [str(path)]] for path in paths]
