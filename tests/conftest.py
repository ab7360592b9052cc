"""Environment variables and settings of all tests."""

import os
import tempfile
from pathlib import Path

from hypothesis import settings

# pytest-xdist runs one process per core, so more threads would only wait for one another. Set before torch is imported;
# the processes that tests start inherit it.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# The tests use a cache of their own instead of the user's.
os.environ.setdefault(
    "KD_BENCH_CACHE", str(Path(tempfile.gettempdir()) / f"kd-bench-tests-{os.environ.get('USER', '')}")
)

# Property tests have no deadline, because the machine may be busy with other work.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
