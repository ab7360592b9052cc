"""Checks and measures kd-bench on a GPU: ``make gpu-check``. Takes less than 4 minutes on a large card.

- facts: the machine, and the time that Python and Lightning take for an operation and an iteration;
- speed: milliseconds per step and seconds per epoch of the pairs of Table 6, with the most memory;
- epoch: the time of a whole epoch, relative to that of its steps;
- bits: recorded steps have the same bits as others, for every method that is not adversarial;
- convs: what cuDNN's deterministic algorithms and the layout of feature maps cost;
- methods: as speed, with the eight methods of Table 6, and the hours of the whole table;
- busy: the share of the time in which the GPU computes;
- queues: as speed, in a process with CUDA's default number of queues for streams;
- compiled: as speed, with compiled networks, which takes minutes per pair.

Each of the first six sections has a share of the minutes, so that all of them begin; the others begin if the minutes
suffice. Every result is written at once to a JSON file beside the page, and the page every ten seconds. Results that
are already there, from the same code, card and versions, are not measured again, so a check that ended early goes on
when it is started again. A measurement that fails does not end the others, unless the process cannot use the device any
more. When the check is started again, what failed comes last.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import sys
import time
import traceback
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_bits, gpu_convs, gpu_device, gpu_epoch, gpu_queues, gpu_speed
from benchmarks.gpu_cohort import TINY, Context, MakeRecorder, Sizes
from benchmarks.markdown import Section, argument_parser
from kd_bench.training.fit import repeatable_convs
from kd_bench.training.recorder import choose_recorder
from kd_bench.trials.environment import utc_timestamp
from kd_bench.utils.errors import first_line
from kd_bench.utils.files import json_text, read_json, write_atomic, write_json
from kd_bench.utils.paths import package_path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "results" / "benchmarks_gpu.md"
SECTIONS = ("facts", "speed", "epoch", "bits", "convs", "methods", "busy", "queues", "compiled")
#: Percent of the minutes that a section may take. What it does not need is left to the next. Expected on an H200: 5 s
#: for facts, 45 s for the steps in float32, 22 s for two epochs, 50 s for the bits, 25 s for convolutions and 45 s for
#: the methods.
SHARES = {"facts": 3, "speed": 26, "epoch": 12, "bits": 27, "convs": 11, "methods": 21}
NOT_MEASURED = "The minutes did not suffice for these, or other sections were asked for. Run the same command again."
#: Least seconds between two versions of the page.
PAGE_SECONDS = 10.0


@dataclass(frozen=True)
class Part:
    """A measurement whose result is kept.

    Attributes:
        section: Its section.
        name: Unique in the section.
        expected_seconds: On a large card. It does not begin if less time is left.
        measure: Returns the result, which can be written as JSON.
    """

    section: str
    name: str
    expected_seconds: float
    measure: Callable[[], dict[str, Any]]

    @property
    def key(self) -> str:
        return f"{self.section}: {self.name}" if self.name else self.section


class ResultFile:
    """Results by part, in a JSON file. Those of another card, of other code or other versions are dropped.

    Args:
        path: The file.
        environment: Everything that the results depend on.
    """

    def __init__(self, path: Path, environment: Mapping[str, Any]) -> None:
        self._path = path
        content = json.loads(json_text(environment))
        known = read_json(path) or {}
        self.has_other = bool(known) and known.get("environment") != content
        self._content = {"environment": content, "parts": {}} if known.get("environment") != content else known

    @property
    def environment(self) -> dict[str, Any]:
        return self._content["environment"]

    @property
    def results(self) -> dict[str, Any]:
        """The results of the parts that did not fail."""
        return {key: part["result"] for key, part in self._content["parts"].items() if "result" in part}

    @property
    def errors(self) -> dict[str, str]:
        """The errors of the parts that failed."""
        return {key: part["error"] for key, part in self._content["parts"].items() if "error" in part}

    def write(self, key: str, part: Mapping[str, Any]) -> None:
        """Writes the result of a part, or its error, in place of what is known of it."""
        self._content["parts"][key] = {"measured": utc_timestamp(), **part}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, self._content)


def plan_parts(context: Context, process_arguments: Sequence[str] = ()) -> list[Part]:
    """Returns all parts, those that matter most first.

    Args:
        context: The context.
        process_arguments: Arguments of ``process_arguments()``.
    """
    cases = gpu_speed.plan_cases(context)

    def time_cases(section: str, expected_seconds: float) -> list[Part]:
        return [
            Part(section, case.name, expected_seconds, lambda case=case: gpu_speed.time_case(context, case))  # type: ignore[misc]
            for case in cases[section]
        ]

    groups = [
        group
        for trials in (context.bit_trials(), context.bit_trials_in_bfloat16())
        for group in gpu_bits.cohorts(trials, context.sizes.company)
    ]
    bits = [
        Part(
            "bits",
            ", ".join(group),
            15,
            lambda group=group: gpu_bits.compare_bits(context, group, in_one_queue=group is groups[0]),  # type: ignore[misc]
        )
        for group in groups
    ]
    return [
        Part("facts", "", 5, lambda: gpu_epoch.measure_facts(context)),
        *time_cases("speed", 8),
        Part("epoch", "", 24, lambda: gpu_epoch.measure_epoch(context)),
        *bits,
        *(
            Part("convs", name, 5, lambda trial=trial: gpu_convs.measure_network(context, trial))  # type: ignore[misc]
            for name, trial in gpu_convs.plan_networks(context).items()
        ),
        *time_cases("methods", 11),
        *(
            Part("busy", pair, 8, lambda pair=pair: gpu_speed.measure_busy(context, pair))  # type: ignore[misc]
            for pair in context.trials
        ),
        Part("queues", "", 30, lambda: gpu_queues.measure_queues(context, process_arguments)),
        *time_cases("compiled", 90),
    ]


def section_ends(parts: Sequence[Part]) -> dict[str, float]:
    """Returns when each section with a share ends, as a fraction of the time, if these parts are to be measured."""
    shares = {name: share for name, share in SHARES.items() if any(part.section == name for part in parts)}
    sums = itertools.accumulate(shares.values())
    return {name: end / sum(shares.values()) for name, end in zip(shares, sums, strict=True)}


def run_parts(
    parts: Sequence[Part],
    file: ResultFile,
    seconds: float,
    report: Callable[[], None] = lambda: None,
    is_usable: Callable[[], bool] = lambda: True,
) -> list[Part]:
    """Measures the parts that have no result yet. Returns those that did not begin, because too little time was left.

    The very first part always begins. Then each section with a share has its turn: its first part begins if it fits
    into the whole time, and its other parts if they fit into the share. Afterwards all parts that are left begin if
    they fit into the whole time.

    Parts that failed in an earlier check come last. One that has begun counts as failed until it ends, because it may
    hang, or end the process. After a failure that leaves the device unusable, no other part begins.

    Args:
        parts: The parts, in their order.
        file: The results.
        seconds: The whole time.
        report: Called after each part.
        is_usable: Returns whether the device still works. Called after a failure.
    """
    begin = time.perf_counter()
    left = sorted((part for part in parts if part.key not in file.results), key=lambda part: part.key in file.errors)
    ends = section_ends(left)
    begun: set[str] = set()
    turns = [(part, seconds * ends[part.section]) for part in left if part.section in ends]
    turns += [(part, seconds) for part in left]
    for number, (part, end) in enumerate(turns):
        start = time.perf_counter() - begin
        latest = (end if part.section in begun else seconds) - part.expected_seconds
        if part not in left or (number and start > latest):
            continue
        begun.add(part.section)
        left.remove(part)
        file.write(part.key, {"error": "it began and did not end"})
        try:
            result = part.measure()
        except Exception as error:
            outcome = f"failed, {type(error).__name__}: {first_line(error)}"
            file.write(part.key, {"error": outcome.removeprefix("failed, "), "traceback": traceback.format_exc()})
        else:
            outcome = "done"
            file.write(part.key, {"result": result, "seconds": time.perf_counter() - begin - start})
        print(f"gpu-check: {time.perf_counter() - begin:4.0f} s: {part.key}: {outcome}", flush=True)
        report()
        if outcome != "done" and not is_usable():
            print("gpu-check: this process cannot use the device any more; the same command goes on with other parts")
            break
    return left


def make_sections(context: Context, environment: Mapping[str, Any], results: Mapping[str, Any]) -> list[Section]:
    """Returns the sections of everything that was measured."""

    def of_section(*names: str) -> dict[str, Any]:
        return {key.partition(": ")[2]: value for key, value in results.items() if key.partition(": ")[0] in names}

    cases = [case for of_kind in gpu_speed.plan_cases(context).values() for case in of_kind]
    timed, epoch = of_section("speed", "methods", "compiled"), results.get("epoch")
    busy = {pair: result["fraction"] for pair, result in of_section("busy").items()}
    sections = [gpu_epoch.facts_section(environment, results.get("facts", {}))]
    if bits := of_section("bits"):
        sections.append(gpu_bits.section({name: value for group in bits.values() for name, value in group.items()}))
    if convs := of_section("convs"):
        sections.append(gpu_convs.section(convs, context.sizes.repeated))
    if timed:
        sections.append(gpu_speed.speed_section(cases, timed, busy))
    if (queues := results.get("queues")) and queues["case"] in timed:
        sections.append(gpu_queues.section(queues, timed[queues["case"]], environment["queues"]))
    if epoch:
        sections.append(gpu_epoch.epoch_section(epoch, busy))
    if timed and not context.sizes.quick:
        sections.append(gpu_speed.table6_section(cases, timed, epoch and epoch["ratio"]))
    return sections


def make_page(sections: Sequence[Section], file: ResultFile, missing: Sequence[str]) -> str:
    """Returns the page, in Markdown.

    Args:
        sections: Its sections.
        file: The results.
        missing: Keys of the parts that were not measured.
    """
    promises = [promise for section in sections for promise in section.promises]
    reached = sum(promise.kept for promise in promises)
    parts = [
        f"# Benchmarks on {file.environment['device_name']}",
        f"Made by `make gpu-check` ({utc_timestamp()}). Only what is below was measured. {reached} of {len(promises)} "
        "aims, which are for a card of the H200's class, are reached.",
        *(f"**{key} failed**: {error}" for key, error in file.errors.items()),
        *(section.markdown() for section in sections),
        *(["\n".join(["## Not measured", "", NOT_MEASURED, "", *(f"- {key}" for key in missing)])] if missing else []),
    ]
    return "\n\n".join(parts) + "\n"


class Page:
    """The page, which is rewritten as results come in.

    Args:
        path: The file.
        context: The context.
        file: The results.
        keys: Keys of all parts.
    """

    def __init__(self, path: Path, context: Context, file: ResultFile, keys: Sequence[str]) -> None:
        self._path, self._context, self._file, self._keys = path, context, file, keys
        self._written = 0.0

    def write(self) -> list[Section]:
        """Writes the page and returns its sections."""
        file = self._file
        sections = make_sections(self._context, file.environment, file.results)
        missing = [key for key in self._keys if key not in file.results and key not in file.errors]
        write_atomic(self._path, make_page(sections, file, missing))
        self._written = time.perf_counter()
        return sections

    def write_if_old(self) -> None:
        """Writes the page if its last version is older than ``PAGE_SECONDS``. So a check that is killed leaves one."""
        if time.perf_counter() - self._written > PAGE_SECONDS:
            self.write()


def code_hash() -> str:
    """Returns a hash of all code and recipes that the results depend on."""
    paths = [*(ROOT / "kd_bench").rglob("*.py"), *Path(__file__).parent.glob("*.py")]
    paths += package_path("recipes", "cifar100").glob("*.yaml")
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def main(argv: Sequence[str] | None = None, make_recorder: MakeRecorder = choose_recorder) -> int:
    """Measures, prints tables and writes the page.

    Args:
        argv: Arguments; None for those of the command.
        make_recorder: Makes the recorders. Tests give one that works without a GPU.

    Returns:
        0; 1 if a measurement failed or bits differ; 2 without a GPU.
    """
    parser = argument_parser(__doc__, quick=False)
    parser.add_argument(
        "--sections", default=",".join(SECTIONS), help="separated by commas; by default all: %(default)s"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only measurements whose name has this text")
    parser.add_argument("--minutes", type=float, default=3.5, help="that it may take (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page; results are beside it, in a .json file")
    parser.add_argument("--data", type=Path, help="folder with CIFAR-100 (default: KD_BENCH_DATA, else ./data)")
    parser.add_argument("--device", help=SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=SUPPRESS)
    options = parser.parse_args(argv)
    chosen = options.sections.split(",")
    if unknown := [name for name in chosen if name not in SECTIONS]:
        parser.error(f"--sections: there is no section {unknown[0]!r}, but {', '.join(SECTIONS)}")
    if options.out.suffix == ".json":
        parser.error(f"--out: {options.out} is the name of the results, so name the page, e.g. {PAGE.name}")
    device = choose_device(options.device)
    if device is None:
        print("gpu-check: there is no CUDA device that torch can use (kd-bench doctor says why)", file=sys.stderr)
        return 2
    context = Context(device, TINY if options.tiny else Sizes(), options.data, make_recorder)
    parts = plan_parts(context, process_arguments(options))
    wanted = [part for part in parts if part.section in chosen and options.only in part.key]
    if not wanted:
        parser.error(f"--only: no measurement of these sections has {options.only!r} in its name")
    environment = gpu_device.describe_device(device) | {
        "images": "CIFAR-100" if context.has_cifar100 else "noise in the shape of CIFAR-100",
        "tiny": options.tiny,
        "code": code_hash(),
    }
    file = ResultFile(options.out.with_suffix(".json"), environment)
    if file.has_other:
        print("gpu-check: the results that are there are of another card, code or version; everything is measured anew")
    page = Page(options.out, context, file, [part.key for part in parts])
    with repeatable_convs(device):  # as in a training
        usable = functools.partial(gpu_device.is_usable, device)
        left = run_parts(wanted, file, 60 * options.minutes, page.write_if_old, usable)
    sections = page.write()
    print("\n\n".join(section.markdown() for section in sections))
    different = [
        line
        for key, result in file.results.items()
        if key.startswith("bits: ")
        for line in gpu_bits.differences(result)
    ]
    problems = [*(f"{key} failed: {error}" for key, error in file.errors.items()), *different]
    print(f"\ngpu-check: {options.out}; {len(problems)} problems{':' if problems else ''}", *problems, sep="\n  ")
    if left:
        print(f"gpu-check: {len(left)} measurements have not begun; the same command goes on with them")
    return int(bool(problems))


def process_arguments(options: Namespace) -> list[str]:
    """Returns arguments with which another process of this script measures on the same device and images."""
    named = {"--data": options.data, "--device": options.device}
    given = [text for name, value in named.items() if value is not None for text in (name, str(value))]
    return [*given, *(["--tiny"] if options.tiny else [])]


def choose_device(name: str | None) -> torch.device | None:
    """Returns the device with this name, by default the current GPU; None if there is no GPU."""
    if name is not None:
        return torch.device(name)
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None


if __name__ == "__main__":
    sys.exit(main())
