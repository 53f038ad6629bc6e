"""Which inputs of the earlier tasks are remembered."""

import numpy as np
import pytest

from hf_fip import InputError
from hf_fip.data.memory import MEMORIES, remembered_rows


# Of each task the labels of its rows: sizes differ, and the last one has a rare class.
STREAM = [[0, 1] * 40, [0, 1, 2] * 20, [0] * 97 + [1] * 3, [0, 1] * 10]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("number", [50, 119, 258])
def test_a_memory_has_its_size_and_is_the_same_again(memory, number):
    chosen = remembered_rows(memory, STREAM, number, seed=3)
    assert sum(map(len, chosen)) == number
    for rows, labels, again in zip(chosen, STREAM, remembered_rows(memory, STREAM, number, seed=3), strict=True):
        assert len(set(rows)) == len(rows) and set(rows) <= set(range(len(labels)))
        assert np.array_equal(rows, again)
    other = remembered_rows(memory, STREAM, number, seed=4)
    assert any(not np.array_equal(*pair) for pair in zip(chosen, other, strict=True))


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("number", [7, 50, 119, 200])
def test_later_memories_keep_a_part_of_the_earlier_ones(memory, number):
    before = remembered_rows(memory, STREAM[:1], number)
    for tasks in range(2, len(STREAM) + 1):
        after = remembered_rows(memory, STREAM[:tasks], number)
        assert all(set(new) <= set(old) for new, old in zip(after, before, strict=False))
        before = after


def test_even_memories_have_equal_shares_and_do_not_look_at_labels():
    assert [len(rows) for rows in remembered_rows("even", STREAM[:3], 50)] == [17, 17, 16]
    assert [len(rows) for rows in remembered_rows("even", STREAM, 119)] == [33, 33, 33, 20], "the last has no more"
    blind = [[0] * len(labels) for labels in STREAM]
    for one, other in zip(remembered_rows("even", STREAM, 40), remembered_rows("even", blind, 40), strict=True):
        assert np.array_equal(one, other)


def test_balanced_memories_have_as_many_of_every_class_as_there_are():
    chosen = remembered_rows("class_balanced", STREAM[:3], 60)
    counts = [np.bincount(np.asarray(labels)[rows]).tolist() for labels, rows in zip(STREAM, chosen, strict=False)]
    assert counts == [[10, 10], [7, 7, 6], [17, 3]]


def test_a_reservoir_is_a_uniform_sample_of_all_rows():
    sizes = [80, 60, 100, 20]
    shares = np.mean(
        [[len(rows) for rows in remembered_rows("reservoir", STREAM, 65, seed)] for seed in range(200)], 0
    )
    assert shares == pytest.approx([65 * size / sum(sizes) for size in sizes], abs=0.9)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_memory_larger_than_the_data_holds_them_all(memory):
    assert [len(rows) for rows in remembered_rows(memory, STREAM[:2], 1000)] == [80, 60]


def test_an_unknown_memory_is_refused():
    with pytest.raises(InputError, match="anchor_memory='best'.*even, class_balanced, reservoir"):
        remembered_rows("best", STREAM, 10)
