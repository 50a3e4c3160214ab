"""Leaves in pieces: put together again with the bits that they had, nothing copied that is there already."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
import toy

from raylingvo.training.pieces import Assembled, Place

# f32[4, 6] cut along both axes, unevenly.
WHOLE_4x6 = np.arange(24, dtype=np.float32).reshape(4, 6)
CUTS = [(slice(*rows), slice(*columns)) for rows in ((0, 1), (1, 4)) for columns in ((0, 2), (2, 3), (3, 6))]
PIECES = [WHOLE_4x6[cut].copy() for cut in CUTS]
PLACES = [Place(0, (rows.start, columns.start)) for rows, columns in CUTS]
BF16_8 = np.arange(8).astype(ml_dtypes.bfloat16)


def of_hosts(order: list[int]) -> Assembled:
    """The pieces of `WHOLE_4x6` in this order, shared by two hosts."""
    half = len(order) // 2
    return Assembled(([PIECES[i] for i in part], [PLACES[i] for i in part]) for part in (order[:half], order[half:]))


def test_whole_leaves_are_those_that_were_given() -> None:
    arrays = [np.arange(3), np.array(2.5), np.zeros((2, 2), ml_dtypes.bfloat16)]
    assembled = Assembled([(arrays, None)])
    assert all(a is b for a, b in zip(assembled.leaves(), arrays, strict=True))
    assert all(assembled.read(i) is x for i, x in enumerate(arrays))
    assert assembled.read(0, (slice(0, 3),)) is arrays[0]
    assert assembled.read(1, ()) is arrays[1]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0]])
def test_pieces_along_two_axes_are_put_together_in_whatever_order_they_come(order: list[int]) -> None:
    assembled = of_hosts(order)
    toy.assert_bit_equal(assembled.leaves(), [WHOLE_4x6])
    toy.assert_bit_equal(assembled.read(0), WHOLE_4x6)


def test_every_part_is_that_of_the_whole() -> None:
    assembled = of_hosts([2, 0, 4, 5, 3, 1])
    rows, columns = ([slice(a, b) for a, b in itertools.combinations(range(n + 1), 2)] for n in WHOLE_4x6.shape)
    for index in itertools.product(rows, columns):
        toy.assert_bit_equal(assembled.read(0, index), WHOLE_4x6[index])


def test_a_part_that_is_one_piece_is_not_copied() -> None:
    assembled = of_hosts(list(range(6)))
    for cut, piece in zip(CUTS, PIECES, strict=True):
        assert assembled.read(0, cut) is piece
    # What lies within a piece has memory of its own.
    assert not np.shares_memory(assembled.read(0, (slice(1, 2), slice(3, 6))), PIECES[5])


def test_pieces_of_several_leaves_may_come_mixed() -> None:
    hosts = [
        ([BF16_8[4:], np.array(7)], [Place(2, (4,)), Place(0, ())]),
        ([np.ones((2, 1)), BF16_8[:4]], [Place(1, (0, 0)), Place(2, (0,))]),
    ]
    toy.assert_bit_equal(Assembled(hosts).leaves(), [np.array(7), np.ones((2, 1)), BF16_8])


def test_scalars_and_empty_leaves_are_pieces_too() -> None:
    empty, scalar = np.zeros((0, 3), np.float32), np.array(3, np.int32)
    assembled = Assembled([([empty], [Place(1, (0, 0))]), ([scalar], [Place(0, ())])])
    toy.assert_bit_equal(assembled.leaves(), [scalar, empty])
    assert assembled.read(1, (slice(0, 0), slice(0, 3))) is empty
    toy.assert_bit_equal(assembled.read(1, (slice(0, 0), slice(1, 3))), np.zeros((0, 2), np.float32))
    toy.assert_bit_equal(of_hosts(list(range(6))).read(0, (slice(2, 2), slice(0, 6))), WHOLE_4x6[2:2])


def test_what_is_missing_is_counted() -> None:
    without = of_hosts([0, 1, 2, 3, 5])  # rows 1 to 4, column 2
    with pytest.raises(ValueError, match=r"^of leaf 0 3 of 24 elements are missing$"):
        without.leaves()
    with pytest.raises(ValueError, match=r"^of leaf 0 1 of 6 elements are missing$"):
        without.read(0, (slice(2, 3), slice(0, 6)))
    toy.assert_bit_equal(without.read(0, (slice(0, 1), slice(0, 6))), WHOLE_4x6[:1])  # all of that is there


def test_the_last_piece_is_missed_by_who_knows_where_the_leaf_ends() -> None:
    assembled = Assembled([([BF16_8[:4]], [Place(0, (0,))])])
    with pytest.raises(ValueError, match=r"^of leaf 0 4 of 8 elements are missing$"):
        assembled.read(0, (slice(0, 8),))
    with pytest.raises(ValueError, match=r"^of leaf 0 2 of 2 elements are missing$"):
        assembled.read(0, (slice(6, 8),))
    toy.assert_bit_equal(assembled.read(0), BF16_8[:4])


def test_a_leaf_of_which_there_is_no_piece_is_named() -> None:
    assembled = Assembled([([BF16_8, BF16_8], [Place(0, (0,)), Place(2, (0,))])])
    with pytest.raises(ValueError, match=r"^there is no piece of leaf 1$"):
        assembled.read(1)
    with pytest.raises(ValueError, match=r"^there are pieces of the leaves \[0, 2\] only$"):
        assembled.leaves()


def test_as_many_places_as_arrays_are_needed() -> None:
    with pytest.raises(ValueError, match="zip"):
        Assembled([([BF16_8, BF16_8], [Place(0, (0,))])])
