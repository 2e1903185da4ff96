"""Data sheets: what a whole one holds, and what each gap is told as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from frontier_tune.contracts import BadInput
from frontier_tune.governance.datasheet import OriginClass, content_digest, load, parse

SHEET: dict[str, Any] = {
    "title": "Generated tables",
    "id": "corpus/tables",
    "issuer": "the frontier-tune authors",
    "version": "1",
    "date": "2026-11-01",
    "description": "Tables of made-up ledgers with questions",
    "origin_class": "synthetic_programmatic",
    "origin_geography": "none",
    "license": "Apache-2.0",
    "generation": {"method": "programs", "program": "frontier_tune/bases/corpus/sheets.py", "seed": 0},
    "intended_purpose": "training the nano base",
    "consents": "none needed: no person's data",
    "privacy": "none",
    "format": "text",
    "content_sha256": "a" * 64,
    "rows": 1000,
}
MODEL = {"id": "acme-7b", "vendor": "Acme", "license": "Apache-2.0", "own_lineage": False}


def test_a_whole_sheet_comes_back_as_it_went_in(tmp_path: Path) -> None:
    sheet = parse(SHEET)
    assert sheet.origin_class is OriginClass.SYNTHETIC_PROGRAMMATIC
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(sheet.to_json()))
    (tmp_path / "a.json").write_text(json.dumps(sheet.to_json()))
    assert load(tmp_path / "a.yaml") == load(tmp_path / "a.json") == sheet


@pytest.mark.parametrize("write", [yaml.safe_dump, json.dumps])
def test_a_field_that_stands_twice_is_refused(tmp_path: Path, write: Any) -> None:
    """The licence of a sheet is never the later one of two."""
    more = "license: MIT\n" if write is yaml.safe_dump else ', "license": "MIT"}'
    (tmp_path / "sheet").write_text(write(SHEET).removesuffix("}") + more)
    with pytest.raises(BadInput, match=r"sheet: not valid YAML or JSON: a key stands twice(.|\n)*'license' again"):
        load(tmp_path / "sheet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"license": "unknown"}, "license: 'unknown' is no SPDX licence expression"),
        ({"license": ""}, "license: .* no SPDX licence expression"),
        ({"license": "MIT AND (Apache-2.0 OR "}, "license: .* no SPDX licence expression"),
        ({"license": "apache-2.0"}, "write 'Apache-2.0'"),
        ({"license": "LicenseRef-Acme"}, "license_contract must say where the contract"),
        ({"origin_class": "found"}, "origin_class: .*customer_owned"),
        ({"origin_class": "model_generated"}, r"generation\.model must be given"),
        ({"origin_class": "open_licensed", "generation": {"method": "m", "model": MODEL}}, r"generation\.model .* only there"),
        ({"generation": {"method": "programs"}}, r"generation\.program must name"),
        ({"content_sha256": "A" * 64}, "content_sha256: .*64 lower-case"),
        ({"rows": 0}, "rows: "),
        ({"intended_purpose": ""}, "intended_purpose: "),
        ({"licence": "MIT"}, "licence: Extra inputs"),
    ],
)
def test_each_gap_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse({**SHEET, **change}, "sheet.yaml")


def test_every_missing_field_is_named_at_once() -> None:
    with pytest.raises(BadInput) as e:
        parse({k: v for k, v in SHEET.items() if k not in ("license", "rows", "consents")}, "s.yaml")
    assert all(f"s.yaml: {k}: Field required" in str(e.value) for k in ("license", "rows", "consents"))


@pytest.mark.parametrize("text", ["MIT OR Apache-2.0", "GPL-2.0-only WITH Classpath-exception-2.0", "CC-BY-4.0"])
def test_expressions_are_taken_as_spdx_writes_them(text: str) -> None:
    assert parse({**SHEET, "license": text}).license == text


def test_own_licences_and_models_are_taken_when_they_are_explained() -> None:
    own = {"license": "LicenseRef-Acme", "license_contract": "contracts/acme-2026.pdf", "origin_class": "commercially_licensed"}
    assert parse({**SHEET, **own}).license_contract
    generated = {"origin_class": "model_generated", "generation": {"method": "sampled", "model": {**MODEL, "own_lineage": True}}}
    sheet = parse({**SHEET, **generated})
    assert sheet.generation.model and sheet.generation.model.own_lineage


def test_files_that_are_no_sheets(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such data sheet"):
        load(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(BadInput, match="not valid YAML"):
        load(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("- a")
    with pytest.raises(BadInput, match="mapping of fields"):
        load(tmp_path / "a.yaml")


def test_content_digest_depends_on_rows_and_their_order_alone() -> None:
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert content_digest(rows) == content_digest([{"b": "x", "a": 1}, {"b": "y", "a": 2}])
    assert content_digest(rows)[1] == 2
    assert content_digest(rows)[0] != content_digest(rows[::-1])[0]
