"""Gives a process as many hardware queues of a GPU as it has CUDA streams.

CUDA distributes the streams of a process among 8 queues by default. A stream waits for what is before it in its queue,
even if that belongs to another stream. A cohort of eight students has nine streams besides the default one, so that
students that could run side by side would wait for each other.
"""

from __future__ import annotations

import os

_VARIABLE, _LARGEST = "CUDA_DEVICE_MAX_CONNECTIONS", "32"


def queue_variables() -> dict[str, str]:
    """Returns the variable for a new process, which reads it when CUDA starts, unless the user has set it."""
    return {} if _VARIABLE in os.environ else {_VARIABLE: _LARGEST}
