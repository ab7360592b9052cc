"""Leaves seconds of other devices out of a pair's mean costs. Trials of one results folder may run on any machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kd_bench.report.statistics import finished, most_frequent
from kd_bench.utils.text import count, first_few

if TYPE_CHECKING:
    import pandas as pd

#: Number of rows that a sentence names.
_NAMED = 5

_PAIR = ["dataset", "teacher", "student"]


def device_of(environment: Mapping[str, Any]) -> str | None:
    """Returns the device that a trial ran on, as a name for people: "NVIDIA H200", "AMD EPYC (AVX2), 1 thread".

    Processors hide their model in many virtual machines, so their instructions are part of the name. The devices of a
    trial that was resumed on another one are joined.

    Args:
        environment: Content of ``environment.json``; empty if there is none.

    Returns:
        The name; None if the environment, as those of early versions, does not name the device.
    """
    earlier = environment.get("earlier") or ()
    names = [_name(part) for part in (*earlier, environment) if isinstance(part, Mapping)]
    return " and ".join(dict.fromkeys(name for name in names if name)) or None


def _name(part: Mapping[str, Any]) -> str | None:
    name = part.get("device_name")
    if not name:
        return None
    if str(part.get("device", "cpu")).startswith("cpu"):
        capability, threads = part.get("cpu_capability"), part.get("threads")
        name = f"{name} ({capability})" if capability else name
        name = f"{name}, {count(threads, 'thread')}" if isinstance(threads, int) else name
    processes = part.get("processes")
    return f"{processes} x {name}" if isinstance(processes, int) and processes > 1 else str(name)


def leave_out_other_devices(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the frame without the seconds of trials that ran on another device than most of their pair.

    A row of which no trial ran on that device keeps its seconds, and ``device_notes`` names it. Trials that do not name
    their device stay.

    Args:
        frame: From ``read_results``.
    """
    if frame["device"].nunique() < 2:
        return frame
    frame = frame.copy()
    for _, trials in frame.groupby(_PAIR, sort=False):
        usual = _usual(trials)
        for _, of_label in trials.groupby("label", sort=False):
            left_out = _others(of_label, usual)
            if len(left_out) < len(finished(of_label)):
                frame.loc[left_out.index, "seconds_per_epoch"] = None
    return frame


def device_notes(frame: pd.DataFrame) -> Iterator[str]:
    """Yields a sentence for each pair whose trials ran on several devices.

    Args:
        frame: From ``leave_out_other_devices``.
    """
    if frame["device"].nunique() < 2:
        return
    several = frame.groupby(_PAIR).ngroups > 1
    for (_, teacher, student), trials in frame.groupby(_PAIR, sort=False):
        usual = _usual(trials)
        left_out: list[str] = []
        kept: list[str] = []
        for label, of_label in trials.groupby("label", sort=False):
            others = _others(of_label, usual)
            if len(others):
                devices = " or ".join(dict.fromkeys(others["device"]))
                text = f"{label} ({count(len(others), 'trial')} on {devices})"
                (left_out if len(others) < len(finished(of_label)) else kept).append(text)
        if left_out or kept:
            pair = f" ({teacher} → {student})" if several else ""
            sentences = [f"Other devices{pair}: seconds an epoch are those of {usual}"]
            meanings = {"left out of means": left_out, "not to be compared with the other rows' seconds": kept}
            sentences += [f"{meaning}: {first_few(rows, _NAMED, ', ')}" for meaning, rows in meanings.items() if rows]
            yield f"{'; '.join(sentences)}."


def _usual(trials: pd.DataFrame) -> str | None:
    """The device of most finished trials, the first one if several are as frequent; None if none is named."""
    device: str | None = most_frequent(finished(trials).drop_duplicates("trial_id")["device"])
    return device


def _others(trials: pd.DataFrame, usual: str | None) -> pd.DataFrame:
    """The finished trials of another device than the usual one."""
    done = finished(trials)
    return done[done["device"].notna() & (done["device"] != usual).fillna(False)]
