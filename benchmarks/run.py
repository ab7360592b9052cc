"""Runs everything that ``make bench`` measures, and writes one page: results/benchmarks.md.

Each benchmark runs in a process of its own with one thread, as many at once as the machine has cores, two at most: that
is how the suite trains on a machine without GPU. Contestants always run in one process, in turns. The minutes are
divided among the pairs of Table 6, which take more rounds in more time. Slow pairs may have one or two rounds, and each
table has their number.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    adversarial,
    column,
    column_tables,
    growth,
    loader,
    losses,
    memory,
    methods,
    overhead,
    pairs,
    peak,
)
from benchmarks.markdown import Section, Table, argument_parser
from benchmarks.measure import total_cpu_seconds
from kd_bench.config.data import Dataset
from kd_bench.data import registry
from kd_bench.trials.environment import describe_environment
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
#: Seconds of one core that all but the pairs take together, roughly.
OTHER_SECONDS = 450
#: Fraction of the minutes that is planned for, because cores seldom end at the same time.
PLANNED_FRACTION = 0.9


@dataclass(frozen=True)
class Job:
    """The work of one process: a function that returns the benchmark's result. ``--only`` selects by the name."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()

    def run(self) -> tuple[Any, float]:
        """Returns the result, and its CPU seconds including child processes."""
        begin = total_cpu_seconds()
        return self.function(*self.arguments), total_cpu_seconds() - begin


def plan_jobs(seconds: float, quick: bool) -> list[Job]:
    """Returns all jobs, the longest first, for ``seconds`` of all cores together."""
    column_seconds = max(0.0, PLANNED_FRACTION * seconds - OTHER_SECONDS)
    shares = column.divide_seconds(column_seconds, list(pairs.plan_pairs(quick)))
    columns = [
        Job(f"column {title}", column.time_pair, (title, share, quick))
        for title, share in sorted(shares.items(), key=lambda item: -item[1])
    ]
    others = [
        Job("losses", losses.benchmark, (2, 0.0, True) if quick else (9, 2.5, False, False)),
        Job("methods", methods.benchmark, (0.0, True) if quick else (90.0,)),
        Job("growth", growth.benchmark, (0.0, True) if quick else (25.0,)),
        Job("loader", loader.benchmark, (256, 64, 1, 0) if quick else (3_000, 64, 3, 2)),
        Job("adversarial", adversarial.benchmark, ("cifar_resnet8", *((4, 1, 0.0, True) if quick else (64, 9, 25.0)))),
        Job("overhead", overhead.benchmark, (5,) if quick else (40,)),
    ]
    if not quick and _has_cifar100():
        others.append(Job("memory", memory.benchmark, (3,)))
    return columns + others


def _has_cifar100() -> bool:
    try:
        registry.locate(Dataset(name="cifar100"))
    except UserError:
        return False
    return True


def run_jobs(jobs: list[Job], processes: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Runs jobs in this number of processes at once, or in this process if it is 0.

    Returns:
        The results, and the errors of the jobs that failed, by name.
    """
    results: dict[str, Any] = {}
    errors: dict[str, str] = {}
    begin = time.perf_counter()

    def finish(name: str, result: Callable[[], tuple[Any, float]]) -> None:
        try:
            results[name], seconds = result()
            outcome = f"done, {seconds:.0f} s of the CPU"
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
            outcome = f"failed, {errors[name]}"
        print(f"bench: {time.perf_counter() - begin:5.0f} s: {name} {outcome}", flush=True)

    if not processes:
        for job in jobs:
            finish(job.name, job.run)
        return results, errors
    with ProcessPoolExecutor(
        processes,
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
        max_tasks_per_child=1,
    ) as pool:
        futures: dict[Future[Any], str] = {pool.submit(job.run): job.name for job in jobs}
        for future in as_completed(futures):
            finish(futures[future], future.result)
    return results, errors


def make_sections(results: Mapping[str, Any]) -> list[Section]:
    """Returns the page's sections in order."""
    columns = [result for name, result in results.items() if name.startswith("column ")]
    titles = list(column.PAIR_SECONDS)
    columns.sort(key=lambda times: titles.index(times.title) if times.title in titles else 0)
    sections: list[Section] = []
    if columns:
        sections += [column_tables.section(columns), column_tables.steps_section(columns), peak.section(columns)]
    if "methods" in results:
        sections.append(methods.section(results["methods"]))
    if "growth" in results:
        sections.append(growth.section(results["growth"]))
    if "overhead" in results:
        sections.append(overhead.section(results["overhead"], columns))
    return sections + [results[name] for name in ("losses", "adversarial", "loader", "memory") if name in results]


def make_page(sections: list[Section], errors: Mapping[str, str], command: str, minutes: float) -> str:
    """Returns the text of results/benchmarks.md."""
    environment = describe_environment("cpu", 1)
    packages = environment["packages"]
    promises = [(section.title, promise) for section in sections for promise in section.promises]
    kept = sum(promise.kept for _, promise in promises)
    rows = [
        [promise.subject, title, promise.promised, promise.measured, "" if promise.kept else "missed"]
        for title, promise in promises
    ]
    parts = [
        "# Benchmarks",
        f"Made by `{command}` at {environment['started']} in {minutes:.1f} minutes, with kd-bench "
        f"{packages['kd-bench']}, torch {packages['torch']} and Python {environment['python']} on "
        f"{environment['processor']}, {environment['cores']} cores ({environment['cpu_capability']}), each process "
        "with one thread. What counts is the ratios: contestants took turns within a process, so that the load of the "
        "machine is the same for all of them. Networks have random weights and images are noise unless a section says "
        "otherwise.",
        "## What was promised",
        f"{kept} of {len(promises)} kept; for those missed, the sections show where the time goes.",
        Table(["of", "benchmark", "promised", "found", ""], rows).markdown(),
        *(f"{name} failed: {error}" for name, error in errors.items()),
        *(section.markdown() for section in sections),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=13.5, help="that it may take, on two cores")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="at once; 0: all in this process")
    parser.add_argument("--only", action="append", default=[], help="benchmarks whose name begins so, e.g. column")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmarks.md", help="the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    jobs = plan_jobs(60 * options.minutes * max(1, options.jobs), options.quick)
    jobs = [job for job in jobs if not options.only or job.name.startswith(tuple(options.only))]
    if not options.quick and "loader" in {job.name for job in jobs} and not _has_cifar100():
        print(
            "bench: CIFAR-100 is not in KD_BENCH_DATA: the loader is measured on random images, memory not at all",
            flush=True,
        )
    results, errors = run_jobs(jobs, options.jobs)
    command = " ".join(["python", "benchmarks/run.py", *sys.argv[1:]])
    sections = make_sections(results)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.output, make_page(sections, errors, command, (time.perf_counter() - begin) / 60))
    missed = [str(promise) for section in sections for promise in section.promises if not promise.kept]
    print(f"bench: {options.output}; {len(missed)} missed{':' if missed else ''}", *missed, sep="\n  ")
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())
