"""What a run ends with for good: a wrong request, training that cannot go on, a disk that takes no more."""

import errno


class RequestError(Exception):
    """A wrong request: an unknown name, a bad value, missing data, a foreign logdir.

    The message is one helpful line (a diff may follow it) that names the argument, echoes the value
    and says the fix. The command line prints it without a traceback and exits 2.
    """


class UnknownMetric(RequestError):
    """A metric that the experiment goes by, and that no role reports."""


class TrainingFailed(RuntimeError):
    """Training cannot go on, and would not from the same state either: it diverged, say.

    The message says why, and where.
    """


class DiskError(RequestError, OSError):
    """A file could not be written: the disk is full, a quota is used up, or the file system is read-only.

    Made as an OSError is, of `errno`, `strerror` and `filename`. The message is one line that names the file, the
    reason and the fix. To try again at once would not help.
    """

    def __str__(self) -> str:
        fix = "make it writable" if self.errno == errno.EROFS else "make space"
        return (
            f"{self.filename} cannot be written: {self.strerror}; {fix} and give the same command again: "
            "a run goes on from its newest checkpoint"
        )


class HostsApart(RuntimeError):
    """The hosts of a Trainer have not found each other: not the fault of any of them."""
