"""All that ``make bench`` measures, as one page: results/benchmarks.md.

Each benchmark runs in a process of its own with one thread, as many at once as the machine has cores, two at most: that
is how the suite trains on a machine without GPU. What is compared always runs in one process, in turns. The minutes are
shared out among the pairs of Table 6, which take more rounds where there is more time; of heavy pairs there may be one
or two, and each table says how many.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the benchmarks

from benchmarks import measure  # first: it quietens the profiler

# isort: split

import torch

from benchmarks import adversarial, column, column_tables, growth, loader, losses, memory, overhead, pairs, peak, steps
from benchmarks.writing import Section, Table
from kd_bench.config.data import Dataset
from kd_bench.data import registry
from kd_bench.trials.environment import describe
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
#: Seconds of one core that all but the pairs take together, roughly.
OTHERS = 300
#: Share of the minutes that is planned for: cores seldom end at the same time.
FILLED = 0.9


@dataclass
class Job:
    """One process's work.

    Attributes:
        name: For people, and what ``--only`` selects by.
        function: Gives what was found.
        arguments: Its arguments by position.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = field(default=())

    def run(self) -> tuple[Any, float]:
        """What was found, and the CPU seconds that it took, with those of processes that were started for it."""
        begin = loader.cpu_seconds()
        return self.function(*self.arguments), loader.cpu_seconds() - begin


def jobs(seconds: float, quick: bool) -> list[Job]:
    """Everything, what takes longest first.

    Args:
        seconds: Of all cores together.
        quick: Little of all, to see that it works.
    """
    titles = list(pairs.planned(quick))
    shares = column.shares(max(0.0, FILLED * seconds - OTHERS), titles)
    ordered = sorted(titles, key=lambda title: -shares[title])
    found = [Job(f"column {title}", column.measure_one, (title, shares[title], quick)) for title in ordered]
    if quick:
        return [
            *found,
            Job("losses", losses.find, (2, 0.0, True)),
            Job("growth", growth.find, (0.0, True)),
            Job("loader", loader.find, (256, 64, 1, 0)),
            Job("adversarial", adversarial.find, ("cifar_resnet8", 4, 1, 0.0, True)),
            Job("overhead", overhead.find, (5,)),
        ]
    return [
        *found,
        Job("losses", losses.find, (9, 2.5, False, False)),
        Job("growth", growth.find, (25.0,)),
        Job("loader", loader.find, (3_000, 64, 3, 2)),
        Job("adversarial", adversarial.find, ("cifar_resnet8", 64, 9, 25.0)),
        Job("overhead", overhead.find, (40,)),
        *([Job("memory", memory.find, (3,))] if _has_images() else []),
    ]


def _has_images() -> bool:
    try:
        registry.locate(Dataset(name="cifar100"))
    except UserError:
        return False
    return True


def work(wanted: list[Job], processes: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Runs them; what was found, and of those that failed why.

    Args:
        wanted: The jobs.
        processes: How many at once; 0 for all in this one, one after the other.
    """
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    begin = time.perf_counter()

    def done(name: str, result: Callable[[], tuple[Any, float]]) -> None:
        try:
            found[name], took = result()
            word = f"done, {took:.0f} s of the CPU"
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
            word = f"failed, {failed[name]}"
        print(f"bench: {time.perf_counter() - begin:5.0f} s: {name} {word}", flush=True)

    if not processes:
        for job in wanted:
            done(job.name, job.run)
        return found, failed
    with ProcessPoolExecutor(
        processes,
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
        max_tasks_per_child=1,
    ) as pool:
        futures: dict[Future[Any], str] = {pool.submit(job.run): job.name for job in wanted}
        for future in as_completed(futures):
            done(futures[future], future.result)
    return found, failed


def sections(found: Mapping[str, Any]) -> list[Section]:
    """In the page's order."""
    columns = [value for name, value in found.items() if name.startswith("column ")]
    columns.sort(key=lambda one: list(column.COSTS).index(one.title) if one.title in column.COSTS else 0)
    made: list[Section] = []
    if columns:
        made += [
            column_tables.section(columns),
            steps.section({one.title: one.alone for one in columns}),
            peak.section(columns),
        ]
    if "growth" in found:
        made.append(growth.section(found["growth"]))
    if "overhead" in found:
        made.append(overhead.section(found["overhead"], columns))
    return made + [found[name] for name in ("losses", "adversarial", "loader", "memory") if name in found]


def page(made: list[Section], failed: Mapping[str, str], command: str, minutes: float) -> str:
    """The whole of results/benchmarks.md."""
    here = describe("cpu", 1)
    packages = here["packages"]
    promises = [(section.title, one) for section in made for one in section.promises]
    missed = sum(not one.kept for _, one in promises)
    rows = [[one.what, section, one.wanted, one.found, "" if one.kept else "missed"] for section, one in promises]
    parts = [
        "# Benchmarks",
        f"Made by `{command}` at {here['started']} in {minutes:.1f} minutes, with kd-bench {packages['kd-bench']}, "
        f"torch {packages['torch']} and Python {here['python']} on {here['processor']}, {here['cores']} cores "
        f"({here['cpu_capability']}), each process with one thread. What counts is the ratios: contestants took turns "
        "within a process, so that the machine's mood is in all of them. Networks have random weights and images are "
        "noise unless something else is said.",
        "## What was promised",
        f"{len(promises) - missed} of {len(promises)} kept; of those missed, the sections say where the time is.",
        Table(["of", "benchmark", "promised", "found", ""], rows).markdown(),
        *(f"{name} failed: {why}" for name, why in failed.items()),
        *(section.markdown() for section in made),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="that it may take, on two cores")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="at once; 0: all in this process")
    parser.add_argument("--only", action="append", default=[], help="benchmarks whose name begins so, e.g. column")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmarks.md", help="the page")
    parser.add_argument("--quick", action="store_true", help="little of all, to see that it works")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    wanted = jobs(60 * options.minutes * max(1, options.jobs), options.quick)
    wanted = [job for job in wanted if not options.only or job.name.startswith(tuple(options.only))]
    found, failed = work(wanted, options.jobs)
    command = " ".join(["python", "benchmarks/run.py", *sys.argv[1:]])
    made = sections(found)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.output, page(made, failed, command, (time.perf_counter() - begin) / 60))
    missed = [
        f"{one.what}: {one.wanted}; found: {one.found}" for section in made for one in section.promises if not one.kept
    ]
    print(f"bench: {options.output}; {len(missed)} missed{':' if missed else ''}", *missed, sep="\n  ")
    return int(bool(failed))


if __name__ == "__main__":
    assert measure
    sys.exit(main())
