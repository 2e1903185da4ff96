import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_tune.learning.packing import common_prefix, pack, plan

# A small alphabet, so that long shared prefixes and equal sequences come up.
SEQUENCES = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(sequences=SEQUENCES, data=st.data())
def test_every_token_has_its_row_and_position(sequences: list[list[int]], data) -> None:
    groups = data.draw(st.none() | st.lists(st.integers(0, 2), min_size=len(sequences), max_size=len(sequences)))
    packed = pack(sequences, groups)
    for i, tokens in enumerate(sequences):
        at = np.arange(len(tokens))
        rows = packed.rows(i, at)
        assert packed.tokens_T[rows].tolist() == tokens
        assert packed.positions_T[rows].tolist() == at.tolist()
    covered = np.sort(np.concatenate([b.row_R.numpy() for b in packed.buckets]))
    assert covered.tolist() == list(range(len(packed.tokens_T)))  # each row in exactly one segment
    for b in packed.buckets:
        assert (b.row_NL[b.slot_R] == b.row_R).all() and len(b.slot_R) >= 0.8 * len(b.row_NL)
    for rest, prefix in packed.cross:  # a rest attends to what comes before it in its own sequence
        assert packed.positions_T[prefix].tolist() == list(range(prefix.stop - prefix.start))
        assert int(packed.positions_T[rest].min()) == prefix.stop - prefix.start
    if groups is None:
        assert len(packed.tokens_T) == sum(map(len, sequences)) and not packed.cross


@settings(max_examples=150, deadline=None)
@given(sequences=SEQUENCES, budget=st.integers(1, 40), data=st.data())
def test_plan_keeps_to_the_budget_and_loses_nothing(sequences: list[list[int]], budget: int, data) -> None:
    groups = data.draw(st.none() | st.lists(st.integers(0, 2), min_size=len(sequences), max_size=len(sequences)))
    batches = plan(sequences, groups, budget)
    assert sorted(i for b in batches for i in b) == list(range(len(sequences)))
    for b in batches:
        rows = len(pack([sequences[i] for i in b], None if groups is None else [groups[i] for i in b]).tokens_T)
        assert rows <= budget or len(b) == 1


def test_common_prefix() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert common_prefix([[1, 2], [1, 2]]) == 2
    assert common_prefix([[1], [2]]) == 0


def test_a_group_computes_its_prompt_once() -> None:
    prompt = list(range(50))
    packed = pack([[*prompt, 100 + i] for i in range(8)], [0] * 8)
    assert len(packed.tokens_T) == 50 + 8


def test_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        pack([[1], []])
