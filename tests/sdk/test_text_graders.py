"""Checklists, quantities with units, JSON schemas (against the jsonschema package), length and language."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_tune.sdk.graders import (
    Checklist,
    Item,
    SchemaError,
    is_language,
    language_of,
    length_within,
    matches_schema,
    mentions,
    quantity_equal,
    read_quantity,
    schema_errors,
    sentence_count,
    word_count,
)
from frontier_tune.sdk.graders.json_schema import _ARGUMENTS

# -- checklists ------------------------------------------------------------------------------------------------------------


def test_a_checklist_is_the_share_of_weight_that_holds() -> None:
    greets = Item[str]("greets", lambda t: mentions(t, "dear Ms Vera"), weight=2.0)
    signed = Item[str]("signed", lambda t: t.endswith("Ben"), needed=True)
    checks = Checklist([greets, signed, Item("short", lambda t: len(t) < 40)])
    assert checks("Dear  ms VERA, thanks. Ben") == 1.0 and checks("Thanks. Ben") == 0.5
    assert checks("Dear Ms Vera, thanks.") == 0.0 and checks.missed("Dear Ms Veras") == ["greets", "signed"]
    for items in ([], [signed, signed], [Item("x", bool, weight=0.0)], [Item("x", bool, weight=math.inf)]):
        with pytest.raises(ValueError, match="checklist"):
            Checklist(items)


def test_mentions_whole_words() -> None:
    assert mentions("It is 12.5 % (net)", "12.5 %") and mentions("\uff21pproved!", "approved")
    assert not mentions("unapproved", "approved") and not mentions("anything", " ")


# -- quantities ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ("1.5 kg", "1500 g"), ("1,500g", "1.5 kg"), ("2 h", "120 minutes"), ("90 Minutes", "1.5 hours"), ("$ 12", "12.00 USD"),
        ("12 %", "12 percent"), ("-3 ft", "-36 in"), ("16 oz", "1 lb"), ("1 234 567", "1,234,567.0"), ("5 KG", "5 kg"),
        ("12 MIN", "12 min"),
    ],
)  # fmt: skip
def test_equal_quantities(actual: str, expected: str) -> None:
    assert quantity_equal(actual, expected) and quantity_equal(expected, actual)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ("5 EUR", "5 USD"), ("5", "5 kg"), ("5 kg", "5 l"), ("5 kg or 6 kg", "5 kg"), ("5 6 7", "5"), ("five", "5"), (5, "5"),
        ("1,50", "1.5"), ("12,34,567", "1234567"), ("5 furlongs", "5 m"), ("$5 USD", "5 USD"), ("", "5"),
        ("9" * 99, "5"), ("5.", "5"),
    ],
)  # fmt: skip
def test_unequal_quantities(actual: object, expected: str) -> None:
    assert not quantity_equal(actual, expected)


@given(st.decimals(-(10**9), 10**9, places=3), st.sampled_from(["kg", "km", "h", "%", "EUR", ""]))
def test_what_is_written_is_read(number: Any, unit: str) -> None:
    plain, grouped = f"{number:f} {unit}", f"{number:,f} {unit}"
    swapped = grouped.replace(",", "_").replace(".", ",").replace("_", ".")
    assert read_quantity(plain) == read_quantity(grouped) == read_quantity(swapped, decimal=",")
    assert read_quantity(f"{number:f}").value == Fraction(number)
    assert quantity_equal(plain, grouped) and quantity_equal("1.04 kg", "1 kg", relative=0.05)


def test_a_wrong_expectation_is_told() -> None:
    with pytest.raises(ValueError, match="unknown unit 'stone'"):
        quantity_equal("5", "5 stone")


# -- JSON schemas ----------------------------------------------------------------------------------------------------------

_leaves = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([1.0, 0.5, -2.5]) | st.text("ab1", max_size=3)
_values = st.recursive(
    _leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from("xyz"), v, max_size=3), max_leaves=6
)
_types = st.sampled_from(["null", "boolean", "number", "integer", "string", "array", "object"])
_small = st.integers(0, 3)
_plain: Any = st.fixed_dictionaries(
    {},
    optional={
        "type": _types | st.lists(_types, min_size=1, max_size=2, unique=True), "enum": st.lists(_leaves, min_size=1, max_size=3),
        "const": _values, "minItems": _small, "maxItems": _small, "uniqueItems": st.booleans(), "minLength": _small,
        "maxLength": _small, "pattern": st.sampled_from(["^a", "b$", "1"]), "minimum": _small, "maximum": _small,
        "exclusiveMinimum": _small, "exclusiveMaximum": _small, "title": st.just("t"),
    },
)  # fmt: skip


def _nested(s: Any) -> Any:
    some = st.lists(s, min_size=1, max_size=3)
    properties = st.dictionaries(st.sampled_from("xyz"), s, max_size=2)
    keys = st.lists(st.sampled_from("xyz"), max_size=2, unique=True)
    deep = {"properties": properties, "required": keys, "additionalProperties": s, "items": s, "anyOf": some, "oneOf": some,
            "allOf": some, "not": s, "$ref": st.just("#/$defs/leaf")}  # fmt: skip
    return st.builds(lambda a, b: {**a, **b}, _plain, st.fixed_dictionaries({}, optional=deep))


_schemas = st.recursive(st.booleans() | _plain, _nested, max_leaves=5)


@settings(max_examples=150)
@given(_schemas, st.lists(_values, min_size=3, max_size=6))
def test_verdicts_are_jsonschemas(schema: Any, values: list[Any]) -> None:
    theirs = pytest.importorskip("jsonschema").Draft202012Validator
    if isinstance(schema, dict):
        schema = {**schema, "$defs": {"leaf": {"type": ["integer", "string"]}}}
    else:
        schema = {"allOf": [schema], "$defs": {"leaf": True}}
    for value in values:
        assert (schema_errors(value, schema) == []) == theirs(schema).is_valid(value), (value, schema)


def test_errors_name_their_place_and_wrong_schemas_are_refused() -> None:
    row = {"type": "object", "properties": {"amount": {"type": "number", "minimum": 0}}, "required": ["amount"]}
    schema = {"type": "object", "properties": {"rows": {"type": "array", "items": row}}, "additionalProperties": False}
    assert schema_errors({"rows": [{"amount": 1}, {"amount": -1}, {}], "x": 1}, schema) == [
        "$.rows[1].amount: is below 0",
        "$.rows[2].amount: is missing",
        "$.x: nothing may be here",
    ]
    assert matches_schema(json.dumps({"rows": []}), schema)
    assert not any(matches_schema(text, schema) for text in ("{", "NaN", "[" * 10**5, "[]"))
    assert not matches_schema("1e999", {"type": "integer"}) and matches_schema("1e2", {"type": "integer"})
    for wrong in ({"format": "email"}, {"type": "float"}, {"$ref": "http://x"}, {"items": 3}):
        with pytest.raises(SchemaError):
            matches_schema([1], wrong)  # type: ignore[arg-type]
    deep = {"properties": {"rows": {"items": {"properties": {"amount": {"minimun": 0}}}}}}
    for answer in ("{}", "no JSON"):  # no answer comes to what is wrong
        with pytest.raises(SchemaError, match=r"\$\.properties\.rows\.items\.properties\.amount: 'minimun' is not known"):
            matches_schema(answer, deep)
    with pytest.raises(SchemaError, match="'required' takes a list of names, each once, not 'amount'"):
        matches_schema({}, {"required": "amount"})
    with pytest.raises(SchemaError, match="itself"):
        matches_schema("1", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})


@settings(max_examples=120)
@given(st.sampled_from(sorted({*_ARGUMENTS} - {"$ref"})), _values | st.just("(") | st.lists(_types, max_size=2), st.booleans())
def test_what_jsonschema_refuses_as_a_schema_is_refused(keyword: str, argument: Any, inner: bool) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = {"properties": {"x": {"items": {keyword: argument}}}} if inner else {keyword: argument}
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError:
        with pytest.raises(SchemaError):
            schema_errors(1, schema)


def test_an_answer_may_be_deep_and_is_no_fault_of_the_schema() -> None:
    tree = {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"child": {"$ref": "#/$defs/node"}}}}}
    assert matches_schema('{"child": ' * 60 + "{}" + "}" * 60, tree)
    assert not matches_schema('{"child": ' * 60 + "1" + "}" * 60, tree)
    assert not matches_schema('{"child": ' * 300 + "{}" + "}" * 300, tree)  # not fit, instead of an error of the grader


# -- length and language ---------------------------------------------------------------------------------------------------


def test_length() -> None:
    text = "  Don't wait. It costs 3.50 today! Call e-mail support  "
    assert (word_count(text), sentence_count(text)) == (10, 3)
    assert length_within(text, 10, 10) and length_within(text, 3, 3, "sentences") and not length_within(text, 1, 9)
    assert length_within(text, 52, 52, "characters") and length_within("", 0, 0) and sentence_count("...") == 0
    with pytest.raises(ValueError, match="nothing is between"):
        length_within("", 2, 1)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "The request was approved by the head of the unit, and it is with the payroll for this month."),
        ("de", "Der Antrag ist nicht vollständig, und wir bitten Sie, das Formular mit dem Beleg zu schicken."),
        ("fr", "La demande est dans le dossier et nous ne sommes pas sûrs que le chef soit pour cette solution."),
        ("es", "La solicitud no está completa y por eso se le pide que envíe el formulario con la factura."),
        ("it", "La richiesta non è completa e per questo si prega di inviare il modulo con la ricevuta."),
        ("nl", "De aanvraag is niet volledig en het formulier van de afdeling wordt met de bon gestuurd, ook voor u."),
        ("pt", "O pedido não está completo e por isso se pede que envie o formulário com a fatura para o chefe."),
        (None, "R1485 Approved 2024-05-01 Ana Ben Chen"),
        (None, ""),
    ],
)
def test_language(code: str | None, text: str) -> None:
    assert language_of(text) == code
    assert is_language(text, "en") is (code == "en")
    with pytest.raises(ValueError, match="'xx' is not known"):
        is_language(text, "xx")
