"""Sequences in memory, whose tokens say which example they are of."""

import numpy as np

from raylingvo.data.sequences import Column, Ragged

SOS, EOS = 1, 2


class Sequences:
    """A SequenceSource: the token t of column c of example i is 100 * i + 10 * c + t % 10, by default."""

    def __init__(self, length_NxC, first=0):
        self.facts = {"num_bad_records": 0.0}
        self.length_NxC = np.asarray(length_NxC, np.int64)
        self.record_N = np.arange(len(self.length_NxC))
        self.first = first
        names = ("src", "tgt")[-self.length_NxC.shape[1] :]
        self.columns = [Column(name=n, pad_id=EOS, sos_id=SOS if n == "tgt" else None) for n in names]

    @property
    def groups(self):
        return [(len(self.length_NxC), 1.0)]

    def take(self, indices):
        columns = []
        for c in range(len(self.columns)):
            parts = [self.tokens(int(i), c) for i in indices]
            columns.append(Ragged(np.concatenate([np.empty(0, np.int32), *parts]), self.length_NxC[indices, c]))
        return columns

    def tokens(self, i, c):
        return (100 * (i + self.first) + 10 * c + np.arange(self.length_NxC[i, c]) % 10 + 1000).astype(np.int32)
