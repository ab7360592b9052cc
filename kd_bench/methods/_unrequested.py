"""Says which outputs the code of a method reads without a request."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kd_bench.types import LOGITS, Needs, Output


def describe_unrequested(
    read: Mapping[str, Collection[str]], needs: Needs, *, owner: str = "", key: str = "needs"
) -> str:
    """Returns which outputs were not requested, and how to request them; empty if all were.

    Args:
        read: The names of the outputs that are read, by network: student and teacher.
        needs: What the method requests.
        owner: What the code reads them from, with a dot, e.g. ``pair.``.
        key: The attribute of the class that requests them.
    """
    missing, arguments = [], []
    for network, names in read.items():
        requested: frozenset[Output] = getattr(needs, network)
        lacking = set(names) - requested - LOGITS - ({"preacts"} if "published_preacts" in requested else set())
        missing += [f"{owner}{network}.{name}" for name in sorted(lacking)]
        if lacking or requested != LOGITS:
            arguments.append(f"{network}=frozenset({{{str(sorted(lacking | requested - LOGITS))[1:-1]}}})")
    if not missing:
        return ""
    verb = "was" if len(missing) == 1 else "were"
    return f"{' and '.join(missing)} {verb} not requested; add {key} = Needs({', '.join(arguments)}) to the class"
