"""Memory that a data set costs when several processes load it at once.

Beside the processes that load the set runs one that imports the same modules and loads nothing. All are measured while
all of them run. A page that several processes share counts for each by its part ("PSS"), so that the sum of PSS over
the processes, less what they would have without the data, is what the data cost the machine.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.markdown import Promise, Section, Table, argument_parser
from kd_bench.config.data import Dataset
from kd_bench.data import registry
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

MIB = 2**20
KINDS = ("pss", "private", "shared")
#: Promised ratio of the memory of the data to the images' bytes, at most.
PROMISED = 1.1


def process_memory() -> dict[str, int]:
    """Returns this process's memory in bytes, by kind."""
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    sizes = {name.rstrip(":"): int(number) * 1024 for name, number, *_ in lines}
    return {
        "pss": sizes["Pss"],
        "private": sizes["Private_Clean"] + sizes["Private_Dirty"],
        "shared": sizes["Shared_Clean"] + sizes["Shared_Dirty"],
    }


def run_process(
    name: str, loads: bool, barrier: Barrier, results: SimpleQueue[tuple[str, dict[str, int], int]]
) -> None:
    """Imports everything, loads the set and reads all images if ``loads``, and reports memory and images' bytes."""
    import torch  # noqa: F401

    from kd_bench.data.sources import _parquet_reader, cifar  # noqa: F401

    size = 0
    if loads:
        splits = registry.load(Dataset(name="cifar100"))
        for images in (splits.train_images, splits.test_images):
            int(images.max())
            size += images.numel()
    barrier.wait()
    report = name, process_memory(), size
    barrier.wait()  # a process that ended earlier would add to the others' part of the shared pages
    results.put(report)


def benchmark(processes: int) -> Section:
    """Measures the memory of this number of processes that load CIFAR-100.

    Raises:
        UserError: If CIFAR-100 is not found.
    """
    registry.load(Dataset(name="cifar100"))  # decodes the set before the processes start
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes + 1), context.SimpleQueue()
    names = ["imports only", *(f"process {number + 1}" for number in range(processes))]
    started = [
        context.Process(target=run_process, args=(name, number > 0, barrier, results))
        for number, name in enumerate(names)
    ]
    for process in started:
        process.start()
    memory, sizes = {}, {}
    for _ in started:
        name, kinds, size = results.get()
        memory[name], sizes[name] = kinds, size
    for process in started:
        process.join()

    size = sizes[names[1]]
    added = {kind: [memory[name][kind] - memory[names[0]][kind] for name in names[1:]] for kind in KINDS}
    total, private = sum(added["pss"]), max(added["private"])
    rows = [[name, *(f"{memory[name][kind] / MIB:.1f}" for kind in KINDS)] for name in names]
    promised = f"at most {PROMISED} times the images' bytes"
    return Section(
        "Memory of a data set",
        f"{size / MIB:.1f} MiB of images, loaded and read by {processes} processes; MiB. All together, less what "
        f"they have without the data, take {total / MIB:.1f}; private to a process are at most {private / MIB:.1f}.",
        [Table(["", "PSS", "private", "shared"], rows)],
        [Promise("all processes", promised, f"{total / size:.3f}", total <= PROMISED * size)],
    )


def main() -> int:
    parser = argument_parser(__doc__, quick=False)
    parser.add_argument("--processes", type=int, default=3, help="that load the set")
    try:
        return benchmark(parser.parse_args().processes).show()
    except UserError as error:
        print(f"memory: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
