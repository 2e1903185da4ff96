"""The base that ships: what its files promise, and that it knows everything but the company."""

from __future__ import annotations

import json

import pytest

from frontier_tune.bases import NANO, load
from frontier_tune.bases.corpus.dialogues import make_dialogue
from frontier_tune.bases.corpus.questions import EXPLICIT, PRACTICE
from frontier_tune.bases.probes import ALTERNATIVES, alternatives, probe
from frontier_tune.governance import datasheet
from frontier_tune.recipe import Adapter


@pytest.fixture(scope="module")
def base():  # type: ignore[no-untyped-def]
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(NANO)


def test_its_files_are_small_and_safe() -> None:
    assert sum(p.stat().st_size for p in NANO.rglob("*") if p.is_file()) <= 8e6
    assert {p.suffix for p in NANO.rglob("*") if p.is_file()} <= {".json", ".safetensors"}


def test_its_widths_all_differ() -> None:
    """So that an adapter laid out the wrong way round fails by shape."""
    config = load("nano").config
    hidden, width, experts = (
        config["hidden_size"],
        config["moe_intermediate_size"],
        config.get("num_experts", config.get("num_local_experts")),
    )
    sizes = [hidden, width, 2 * width, experts * Adapter().rank]
    assert len(set(sizes)) == len(sizes)


def test_every_source_of_its_corpus_has_a_data_sheet() -> None:
    record = json.loads((NANO / "record.json").read_text())
    sheets = {sheet.id.rsplit("/", 1)[-1]: sheet for sheet in map(datasheet.load, load("nano").datasheets)}
    assert {name: sheet.rows for name, sheet in sheets.items()} == record["corpus"]["sources"]


@pytest.mark.slow
def test_it_answers_what_is_said_in_full(base) -> None:  # type: ignore[no-untyped-def]
    found = probe(*base, (make_dialogue(4711, i) for i in range(80)))
    explicit = [found[name] for name in {q.name for q in EXPLICIT} if name in found]
    assert sum(f["right"] * f["n"] for f in explicit) / sum(f["n"] for f in explicit) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("question", PRACTICE, ids=lambda q: q.name)
def test_it_is_at_chance_among_a_company_s_alternatives(base, question) -> None:  # type: ignore[no-untyped-def]
    """Each can be sampled, so reward can find it; none is a favourite."""
    found = alternatives(*base, question, scenes=16)
    assert len(found) == ALTERNATIVES[question.name]
    assert min(found.values()) >= 0.02 and max(found.values()) <= 2 / len(found) and sum(found.values()) >= 0.75
