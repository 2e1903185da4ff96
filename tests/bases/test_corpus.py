"""The corpus: a pure function of its seed, at chance among a company's alternatives, blind to held-out layouts."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from frontier_tune.bases.corpus import sheets
from frontier_tune.bases.corpus.build import Corpus, Sizes, write_corpus
from frontier_tune.bases.corpus.datasheets import data_sheets
from frontier_tune.bases.corpus.dialogues import make_dialogue, run_call
from frontier_tune.bases.corpus.questions import EXPLICIT, PRACTICE
from frontier_tune.bases.probes import ALTERNATIVES
from frontier_tune.governance import datasheet
from frontier_tune.sdk.grammar import parse, render_compact
from frontier_tune.sdk.workbook.layouts import HELDOUT_FAMILIES, TRAIN_FAMILIES


def test_a_dialogue_is_a_pure_function_of_seed_and_index() -> None:
    assert make_dialogue(3, 17) == make_dialogue(3, 17)
    assert make_dialogue(3, 17) != make_dialogue(3, 18)
    assert make_dialogue(3, 17) != make_dialogue(4, 17)


def test_workers_do_not_change_the_corpus() -> None:
    sizes = Sizes(drills=5, dialogues=12, record_drills=3, records=4, practice=("envs/hr_triage",), practised=3)
    assert write_corpus(1, sizes, workers=1).sha256 == write_corpus(1, sizes, workers=2).sha256


def test_every_call_is_in_the_grammar_and_succeeds() -> None:
    from frontier_tune.bases.general import GeneralSpreadsheet

    signatures = GeneralSpreadsheet.signatures
    for index in range(60):
        for message in make_dialogue(11, index).messages:
            if message.role == "assistant":
                assert render_compact(parse(message.content, signatures), signatures) == message.content
            elif message.role == "tool":
                assert not message.content.startswith("error")


@pytest.mark.parametrize("question", PRACTICE, ids=lambda q: q.name)
def test_alternatives_are_equally_frequent_and_uncued(question) -> None:  # type: ignore[no-untyped-def]
    """Same scene, many coins: every alternative comes up, none more than its share allows (5 sigma)."""
    rng = random.Random(5)
    scene = sheets.make_scene(rng, question.tables)
    n = 4000
    seen = Counter(question.ask(rng, scene).choice for _ in range(n))
    k = ALTERNATIVES[question.name]
    assert len(seen) == k
    expected, sigma = n / k, (n / k * (1 - 1 / k)) ** 0.5
    assert all(abs(count - expected) < 5 * sigma for count in seen.values())
    prompts = {question.ask(rng, scene).prompt for _ in range(20)}
    assert len(prompts) == 1, "the prompt must not depend on the alternative"


def test_chance_is_at_most_one_in_eight() -> None:
    assert min(ALTERNATIVES.values()) >= 8


def test_held_out_layout_families_are_not_drawn() -> None:
    """make_scene draws from the train families unless told otherwise, and the two lists share no name."""
    assert not {f.name for f in TRAIN_FAMILIES} & {f.name for f in HELDOUT_FAMILIES}
    assert sheets.make_scene.__defaults__ == (TRAIN_FAMILIES,)


@pytest.mark.parametrize("question", EXPLICIT, ids=lambda q: q.name)
def test_an_explicit_prompt_determines_its_answer(question) -> None:  # type: ignore[no-untyped-def]
    """Equal prompts on one workbook have equal answers: nothing about an explicit question is left to a coin."""
    rng = random.Random(9)
    scene = sheets.make_scene(rng, question.tables)
    answers: dict[str, str] = {}
    for _ in range(300):
        answer = question.ask(rng, scene)
        assert answers.setdefault(answer.prompt, answer.call) == answer.call


def test_asking_leaves_the_workbook_alone() -> None:
    rng = random.Random(2)
    scene = sheets.make_scene(rng, ("sales",))
    answer = PRACTICE[0].ask(rng, scene)
    assert not scene.session.changed
    run_call(scene.session, answer.call)
    assert scene.session.changed


def test_data_sheets_validate_and_count_every_row() -> None:
    sizes = Sizes(
        drills=6, dialogues=20, record_drills=3, records=4, practice=("envs/hr_triage", "envs/crm_cleanup"), practised=3
    )
    corpus = write_corpus(2, sizes, workers=1)
    found = [datasheet.parse(sheet) for sheet in data_sheets(corpus, "test")]
    assert sum(sheet.rows for sheet in found) == len(corpus.texts) == 39
    assert len({sheet.content_sha256 for sheet in found}) == len(found) == 7


def test_the_corpus_hash_sees_every_text() -> None:
    a, b = Corpus(0, ["x", "y"]), Corpus(0, ["x", "z"])
    assert a.sha256 != b.sha256
    assert Corpus(0, ["ab", "c"]).sha256 != Corpus(0, ["a", "bc"]).sha256
