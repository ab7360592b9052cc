"""The CPU cores that this process may use."""

from __future__ import annotations


def usable_cores() -> int:
    """Returns their number: less than the machine has if an affinity or a container's quota says so, at least 1."""
    from joblib import cpu_count

    return int(cpu_count())
