"""Gives a process enough hardware queues of a GPU for its CUDA streams.

By default CUDA distributes the streams of a process among 8 queues. Operations of two streams in the same queue wait
for each other. A cohort of eight students has nine streams besides the default one, so some students could not run side
by side.
"""

from __future__ import annotations

import os

_VARIABLE, _LARGEST = "CUDA_DEVICE_MAX_CONNECTIONS", "32"


def queue_variables() -> dict[str, str]:
    """Returns the environment variable for a new process, which reads it when CUDA starts; {} if the user set it."""
    return {} if _VARIABLE in os.environ else {_VARIABLE: _LARGEST}
