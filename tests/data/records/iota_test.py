"""`iota:N` has the records of Lingvo's, at any index."""

import numpy as np
import pytest

from raylingvo.data.records import open_records
from raylingvo.errors import RequestError


def test_records_are_ten_digits():
    records = open_records("iota:100")
    assert len(records) == 100
    assert records.read(np.array([99, 0])) == [b"0000000099", b"0000000000"]
    assert records.where(7) == "iota:100: record 7"
    assert records.fingerprint != open_records("iota:101").fingerprint


@pytest.mark.parametrize("count", ["", "0", "-1", "x", "1.5", "10000000001"])
def test_other_counts_are_refused(count):
    with pytest.raises(RequestError, match=rf"iota needs a number of records .* \(got 'iota:{count}'\)"):
        open_records(f"iota:{count}")
