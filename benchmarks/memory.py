"""Memory that a data set costs when several processes load it at once.

Beside the processes that load it runs one that imports the same modules and loads nothing; all are looked at while all
are there. A page that several processes share counts for each by its part ("PSS"), so that the sum of PSS over the
processes, less what they would have without the data, is what the data cost the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the benchmarks

from benchmarks.writing import Promise, Section, Table, show
from kd_bench.config.data import Dataset
from kd_bench.data import registry
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

MIB = 2**20
#: What the data may cost at most, as a multiple of the images' bytes.
PROMISED = 1.1


def rollup() -> dict[str, int]:
    """This process's memory in bytes, by kind."""
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    kinds = {name.rstrip(":"): int(number) * 1024 for name, number, *_ in lines}
    return {
        "pss": kinds["Pss"],
        "private": kinds["Private_Clean"] + kinds["Private_Dirty"],
        "shared": kinds["Shared_Clean"] + kinds["Shared_Dirty"],
    }


def process(name: str, loads: bool, everyone: Barrier, results: SimpleQueue[tuple[str, dict[str, int], int]]) -> None:
    """Imports everything, loads the set and touches all images if it shall, and reports."""
    import torch  # noqa: F401

    from kd_bench.data.sources import cifar, parquet_reader  # noqa: F401

    size = 0
    if loads:
        splits = registry.load(Dataset(name="cifar100"))
        for images in (splits.train_images, splits.test_images):
            int(images.max())
            size += images.numel()
    everyone.wait()
    report = name, rollup(), size
    everyone.wait()  # nobody leaves, and gives its part of the pages to the others, before all have looked
    results.put(report)


def find(processes: int) -> Section:
    """What so many processes that load the set take.

    Raises:
        UserError: Where CIFAR-100 is not found.
    """
    registry.load(Dataset(name="cifar100"))  # decoded once, whoever comes first
    context = multiprocessing.get_context("spawn")
    everyone, results = context.Barrier(processes + 1), context.SimpleQueue()
    names = ["imports only", *(f"process {number + 1}" for number in range(processes))]
    started = [
        context.Process(target=process, args=(name, bool(place), everyone, results)) for place, name in enumerate(names)
    ]
    for one in started:
        one.start()
    found = {name: (memory, size) for name, memory, size in (results.get() for _ in started)}
    for one in started:
        one.join()

    without = found[names[0]][0]
    images = found[names[1]][1]
    kinds = ("pss", "private", "shared")
    rows = [[name, *(f"{found[name][0][kind] / MIB:.1f}" for kind in kinds)] for name in names]
    cost = sum(found[name][0]["pss"] - without["pss"] for name in names[1:])
    private = max(found[name][0]["private"] - without["private"] for name in names[1:])
    return Section(
        "Memory of a data set",
        f"{images / MIB:.1f} MiB of images, loaded and read by {processes} processes; MiB. All together, less what "
        f"they have without the data, take {cost / MIB:.1f}; private to a process are at most {private / MIB:.1f}.",
        [Table(["", "PSS", "private", "shared"], rows)],
        [
            Promise(
                "all processes",
                f"at most {PROMISED} times the images' bytes",
                f"{cost / images:.3f}",
                cost <= PROMISED * images,
            )
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=3, help="how many load the set")
    given = parser.parse_args()
    try:
        return show(find(given.processes))
    except UserError as error:
        print(f"memory: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
