"""What holds for all tests."""

import os

# pytest-xdist runs a process a core; threads of their own would only make them wait for one another. Set before torch
# is imported, and handed on to the processes that tests start.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
