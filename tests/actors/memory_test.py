"""Memory: what is started for roles keeps it, what the user has set stays."""

import os
import subprocess
import sys

from raylingvo.actors import memory

# Takes and frees 64 blocks of 1 MB; prints how many pages the system had to give for that the second time.
PROGRAM = """
import resource

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del [bytearray(b"1" * 1_000_000) for _ in range(64)][:]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def faults():
    return int(subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True).stdout)


def test_memory_is_kept_only_meanwhile():
    before = dict(os.environ)
    with memory.kept():
        kept = faults()
    assert os.environ == before
    assert faults() > 10_000 > 100 > kept


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    with memory.kept():
        assert os.environ["MALLOC_ARENA_MAX"] == "3"
        assert os.environ["MALLOC_MMAP_MAX_"] == "0"
    assert os.environ["MALLOC_ARENA_MAX"] == "3"
    assert "MALLOC_MMAP_MAX_" not in os.environ
