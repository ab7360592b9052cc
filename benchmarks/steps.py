"""One step of each method on each pair of Table 6, alone with its teacher, by its parts.

CPU seconds of one thread. The networks have random weights, the images are noise, batches are of 64: what is computed
is what a step of the recipe computes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the benchmarks

from benchmarks import measure, pairs  # measure first: it quietens the profiler

# isort: split

import torch

from benchmarks.pairs import ALONE, PARTS, Step
from benchmarks.writing import Section, Table, milliseconds, show, spread
from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset

#: Rounds at most.
ROUNDS = 5


def measure_pair(trials: Mapping[str, Trial], data: ArrayDataset, seconds: float) -> dict[str, list[Step]]:
    """Steps of each method, which take turns; after ``seconds`` no further round begins."""
    begin = time.perf_counter()
    network, view = pairs.teacher(trials["kd"], data)
    laps = pairs.Laps()
    cohorts = {}
    for label, trial in trials.items():
        taught_by = None if label == ALONE else network
        member = pairs.member(trial, data, taught_by)
        laps.watch(member)
        cohorts[label] = pairs.cohort([member], taught_by, view)
    stream = pairs.batches(trials["kd"], data)
    pairs.step(cohorts["kd"], stream, laps)  # what only a first step needs is made
    found: dict[str, list[Step]] = defaultdict(list)
    for _ in range(ROUNDS):
        for label, cohort in cohorts.items():
            found[label].append(pairs.step(cohort, stream, laps))
        if time.perf_counter() - begin > seconds:
            break
    return found


def section(found: Mapping[str, Mapping[str, Sequence[Step]]]) -> Section:
    """A table of all pairs.

    Args:
        found: Steps by pair and method.
    """
    rows = []
    for title, methods in found.items():
        for label, taken in methods.items():
            parts = [statistics.median(step.of(part) for step in taken) for part in PARTS]
            total = [step.total for step in taken]
            rows.append([title, label, len(taken), spread(total, 1e3, 0), *map(milliseconds, parts)])
    return Section(
        "One step of each method",
        "Milliseconds of the CPU for one step of one trial alone with its teacher, medians (and ranges) of n rounds. "
        f"{ALONE} is the student alone.",
        [Table(["pair", "method", "n", "step", *PARTS], rows)],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="after which no further round begins")
    parser.add_argument("--only", default="", help="pairs whose title contains this")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that it works")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = pairs.images(512 if options.quick else pairs.IMAGES)
    wanted = {title: trials for title, trials in pairs.planned(options.quick).items() if options.only in title}
    seconds = options.seconds / max(1, len(wanted))
    return show(section({title: measure_pair(trials, data, seconds) for title, trials in wanted.items()}))


if __name__ == "__main__":
    assert measure
    sys.exit(main())
