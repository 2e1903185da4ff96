"""The nano tokenizer: any text round-trips, a word is one token wherever it stands, only the assistant's words are labelled."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_tune.bases.corpus.dialogues import make_dialogue
from frontier_tune.bases.tokenizer import SPECIAL, encode_dialogue, train_tokenizer
from frontier_tune.contracts import Message
from frontier_tune.sdk.grammar import compact_dialogue


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return train_tokenizer([compact_dialogue(make_dialogue(0, i).messages) for i in range(40)], 700)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80).filter(lambda t: not any(s in t for s in SPECIAL)))
def test_any_text_round_trips(tokenizer, text: str) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_name_is_the_same_tokens_in_prompt_header_and_formula(tokenizer) -> None:  # type: ignore[no-untyped-def]
    name = tokenizer.encode("Closing date", add_special_tokens=False)
    for text in ("of Closing date.", "Ref|Closing date|Due", "=[@Closing date]-1"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert any(ids[i : i + len(name)] == name for i in range(len(ids)))


def test_digits_of_an_address_stand_alone(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert len(tokenizer.encode("H158", add_special_tokens=False)) == 4


def test_labels_cover_the_assistant_alone(tokenizer) -> None:  # type: ignore[no-untyped-def]
    dialogue = (
        Message("user", "Read it."),
        Message("assistant", "read Sales"),
        Message("tool", "Sales A1:B2"),
        Message("assistant", "submit"),
    )
    ids, mask = encode_dialogue(tokenizer, compact_dialogue(dialogue))
    said = tokenizer.decode([t for t, m in zip(ids, mask, strict=True) if m])
    assert said == "read Sales<|end|>submit<|end|>"
