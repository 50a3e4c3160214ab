"""Made-up rows have the fields of packed sequences."""

import numpy as np
import pytest

from raylingvo.data.synthetic import SyntheticPackedRows


def test_rows_are_like_packed_ones():
    batch = SyntheticPackedRows(length=5).train_batches(3, 0)[7]
    for name in ("ids", "labels", "segment_ids", "segment_pos"):
        assert batch[name].dtype == np.int32
        np.testing.assert_array_equal(batch[name], np.ones((3, 5)))
    assert not batch["paddings"].any()
    assert len(batch["id"]) == len(set(batch["id"])) == 3
    assert len(SyntheticPackedRows(length=5, size=7).eval_batches(3)) == 3


def test_sizes_are_positive():
    with pytest.raises(ValueError, match=r"length must be >= 1 \(got 0\)"):
        SyntheticPackedRows(length=0)
