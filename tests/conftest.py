"""What holds for all tests."""

import os
import tempfile
from pathlib import Path

# pytest-xdist runs a process a core; threads of their own would only make them wait for one another. Set before torch
# is imported, and handed on to the processes that tests start.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# What is kept between runs is not the user's.
os.environ.setdefault(
    "KD_BENCH_CACHE", str(Path(tempfile.gettempdir()) / f"kd-bench-tests-{os.environ.get('USER', '')}")
)
