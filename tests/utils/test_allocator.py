"""Memory of freed tensors stays with the process."""

import ctypes
import os
import subprocess
import sys

import pytest

from kd_bench.utils.allocator import allocator_variables

#: Prints how many bytes of freed memory glibc keeps after ten tensors of 16 MiB. glibc is asked, since not every system
#: counts the pages that it hands out.
CODE = """
import ctypes, sys
import torch
from kd_bench.utils.allocator import keep_freed_memory

class MallocInfo(ctypes.Structure):
    # struct mallinfo2 of malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = MallocInfo

if sys.argv[1] == "keep":
    keep_freed_memory()
torch.set_num_threads(1)
tensors = [torch.ones(2**22) for _ in range(10)]
del tensors
print(mallinfo2().fordblks)
"""


def kept(mode: str, **variables: str) -> float:
    """Returns the freed memory that a new process keeps, as a share of the tensors' memory."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, mode], env=clean | variables, capture_output=True, text=True, check=True
    )
    return int(done.stdout) / (10 * 2**24)


@pytest.mark.skipif(
    os.name != "posix" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or later"
)
def test_memory_is_kept_by_the_function_and_by_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in allocator_variables():
        monkeypatch.delenv(name, raising=False)
    assert kept("default") < 0.5
    assert kept("keep") >= 1
    assert kept("default", **allocator_variables()) >= 1


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    assert "MALLOC_TOP_PAD_" not in allocator_variables()
    assert "MALLOC_TRIM_THRESHOLD_" in allocator_variables()
