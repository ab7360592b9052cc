"""Memory of freed tensors stays with the process."""

import os
import subprocess
import sys

import pytest

from kd_bench.utils.allocator import allocator_variables

#: Prints how often the system gave a page of memory to ten evaluations, after ten others have found their places.
CODE = """
import resource, sys
import torch
from kd_bench.utils.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
torch.set_num_threads(1)
def evaluate():
    torch.relu(torch.relu(torch.ones(2**20))).sum()
for _ in range(10):
    evaluate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    evaluate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(mode: str, **variables: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, mode], env=clean | variables, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_memory_is_kept_by_the_function_and_by_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in allocator_variables():
        monkeypatch.delenv(name, raising=False)
    usual = pages("default")
    assert usual > 10_000  # 10 times two tensors of 4 MiB, in pages of 4 KiB
    assert pages("keep") < usual / 10
    assert pages("default", **allocator_variables()) < usual / 10


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    assert "MALLOC_TOP_PAD_" not in allocator_variables()
    assert "MALLOC_TRIM_THRESHOLD_" in allocator_variables()
