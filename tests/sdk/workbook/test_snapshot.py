"""Reading saved workbooks: limits and broken files are named; formulas are told from values, against openpyxl's own reading."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from openpyxl import Workbook, load_workbook

from frontier_tune.sdk.graders import CellError
from frontier_tune.sdk.workbook.package import PackageLimits, UnreadableWorkbook, read_package
from frontier_tune.sdk.workbook.snapshot import read_snapshot

SHEET = "xl/worksheets/sheet1.xml"
TINY = PackageLimits(file_bytes=2**20, parts=40, unpacked_bytes=2**20, cells=500, areas=500)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    book = Workbook()
    book.active.append([1, "a", "=A1*2"])
    book.active["A2"] = "#N/A"
    book.active["C9"] = '=IF(B1="a b", _xlfn.XLOOKUP(A1,A:A,B:B), 0)'
    book.save(tmp_path / "book.xlsx")
    return tmp_path / "book.xlsx"


def change(path: Path, edit: Callable[[bytes], bytes], part: str = SHEET, extra: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()} | (extra or {})
    parts[part] = edit(parts[part])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def kind(path: Path, limits: PackageLimits = TINY) -> str:
    with pytest.raises(UnreadableWorkbook) as found:
        read_snapshot(path, limits)
    return found.value.kind


def test_values_and_formulas(path: Path) -> None:
    sheet = read_snapshot(path, TINY).sheets["Sheet"]
    assert sheet.values == {(1, 1): 1, (1, 2): "a", (2, 1): CellError("#N/A")}
    assert set(sheet.formulas) == {(1, 3), (9, 3)} and sheet.last_row == 9
    assert not any(f.calculated for f in sheet.formulas.values())
    assert sheet.formulas[9, 3].at((9, 3)) == 'IF(B1="a b",XLOOKUP(A1,A:A,B:B),0)'


def test_shared_formulas_are_filled_as_openpyxl_fills_them(path: Path) -> None:
    rows = b"".join(
        b'<row r="%d"><c r="D%d"><f t="shared" si="0"%s</c></row>'
        % (r, r, b' ref="D20:D22">$A20+B$1*C20</f><v>1</v>' if r == 20 else b"/><v>2</v>")
        for r in (20, 21, 22)
    )
    change(path, lambda xml: xml.replace(b"</sheetData>", rows + b"</sheetData>"))
    formulas = read_snapshot(path, TINY).sheets["Sheet"].formulas
    theirs = load_workbook(path)["Sheet"]
    for row in (20, 21, 22):
        assert "=" + formulas[row, 4].at((row, 4)) == theirs.cell(row, 4).value
        assert formulas[row, 4].calculated


def test_cells_without_addresses_follow_the_one_before(path: Path) -> None:
    rows = b"<row><c><v>1</v></c><c><f>A1</f><v>1</v></c></row>"
    change(path, lambda xml: xml.replace(b"</sheetData>", rows + b"</sheetData>"))
    assert (10, 2) in read_snapshot(path, TINY).sheets["Sheet"].formulas
    assert load_workbook(path)["Sheet"]["B10"].value == "=A1"


def test_what_is_no_workbook(path: Path, tmp_path: Path) -> None:
    assert kind(tmp_path / "nowhere.xlsx") == "missing"
    text = tmp_path / "text.xlsx"
    text.write_text("no zip")
    assert kind(text) == "broken"
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 10):
        text.write_bytes(whole[:cut])
        assert kind(text) == "broken"
    assert kind(change(path, lambda xml: xml[: len(xml) // 2])) == "broken"
    assert kind(change(path, lambda xml: xml[:-20], part="xl/workbook.xml")) == "broken"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"</sheetData>", b"</sheetData><mergeCells><mergeCell ref='A1:XFD1048576'/></mergeCells>", "over-limits"),
        (b"</sheetData>", b'</sheetData><hyperlinks><hyperlink ref="A:C" location="x"/></hyperlinks>', "over-limits"),
        (b"</sheetData>", b"<row>" + b"<c/>" * 501 + b"</row></sheetData>", "over-limits"),
        (b"</sheetData>", b"</sheetData>" + b" " * 2**20, "over-limits"),
        (b"<worksheet", b'<!DOCTYPE w [<!ENTITY a "x">]><worksheet', "forbidden"),
    ],
)
def test_bombs_are_named(path: Path, old: bytes, new: bytes, said: str) -> None:
    assert kind(change(path, lambda xml: xml.replace(old, new, 1))) == said


def test_bombs_are_named_in_utf_16_and_under_other_names(path: Path) -> None:
    bomb = "<!DOCTYPE w []><w/>"
    for data in (bomb.encode("utf-16"), bomb.encode("utf-16-le"), bomb.encode("utf-16-be")):
        assert kind(change(path, bytes, extra={"xl/media/picture.png": data})) == "forbidden"


def test_files_and_parts_have_limits(path: Path) -> None:
    assert kind(path, PackageLimits(file_bytes=100)) == "over-limits"
    assert kind(path, PackageLimits(parts=2)) == "over-limits"
    raw, parts = read_package(path)
    assert raw == path.read_bytes() and SHEET in parts
