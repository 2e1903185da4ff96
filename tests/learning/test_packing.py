from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier_tune.learning import packing
from frontier_tune.learning.packing import common_prefix, pack, plan

# A small alphabet, so that long shared prefixes and equal sequences come up.
SEQUENCES = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=8)


@pytest.fixture(autouse=True, scope="module")
def share_every_branch() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_MIN_SAVED_ROWS", 1)
        yield


@settings(max_examples=150, deadline=None)
@given(sequences=SEQUENCES, data=st.data())
def test_every_token_has_its_row_and_position(sequences: list[list[int]], data) -> None:
    groups = data.draw(st.none() | st.lists(st.integers(0, 2), min_size=len(sequences), max_size=len(sequences)))
    packed = pack(sequences, groups)
    for i, tokens in enumerate(sequences):
        at = np.arange(len(tokens))
        rows = packed.rows[i]
        assert packed.tokens_T[rows].tolist() == tokens
        assert packed.positions_T[rows].tolist() == at.tolist()
    covered = np.sort(np.concatenate([b.row_R.numpy() for b in packed.buckets]))
    assert covered.tolist() == list(range(len(packed.tokens_T)))  # each row in exactly one segment
    for b in packed.buckets:
        assert (b.row_NL[b.slot_R] == b.row_R).all() and len(b.slot_R) >= 0.8 * len(b.row_NL)
    # What each row attends to, from the plan of attention calls alone: exactly the earlier rows of its own sequence.
    sees = {row: set() for row in range(len(packed.tokens_T))}
    for b in packed.buckets:
        for segment in b.row_NL.view(b.size).tolist():
            real = [r for j, r in enumerate(segment) if j == 0 or r == segment[0] + j]
            for j, row in enumerate(real):
                sees[row] |= set(real[: j + 1])
    for rest, prefix in packed.cross:
        for row in range(rest.start, rest.stop):
            assert not sees[row] & set(range(prefix.start, prefix.stop))  # no key twice
            sees[row] |= set(range(prefix.start, prefix.stop))
    for rows in packed.rows:
        for j, row in enumerate(rows.tolist()):
            assert sees[row] == set(rows[: j + 1].tolist())
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


def test_branches_of_a_group_share_theirs_too() -> None:
    prompt, turn = list(range(50)), list(range(60, 80))
    packed = pack([[*prompt, *turn, 100 + i] for i in range(4)] + [[*prompt, 90, i] for i in range(4)], [0] * 8)
    assert len(packed.tokens_T) == 50 + (20 + 4) + (1 + 4)
    assert len(pack([[*prompt, *turn]] * 8, [0] * 8).tokens_T) == 70


def test_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        pack([[1], []])
