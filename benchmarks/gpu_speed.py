"""Times of recorded steps on a GPU, by pair, number of students and precision, and what Table 6 takes with them."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks import gpu_device, pairs
from benchmarks.gpu_cohort import Context, SteppedCohort, collected_messages
from benchmarks.markdown import Promise, Section, Table
from kd_bench.config.load import read_recipe
from kd_bench.config.trial import Trial
from kd_bench.plan import plan

#: Aims for a cohort of eight students on a card of the H200's class, in seconds per epoch and student.
AIMS = {
    "VGG13 -> MobileNet-V2": 0.9,
    "ResNet50 -> MobileNet-V2": 1.2,
    "WRN-40-2 -> ShuffleNet-V1": 2.0,
    "ResNet32x4 -> ShuffleNet-V1": 2.2,
    "ResNet32x4 -> ShuffleNet-V2": 2.2,
    "ResNet32x4 -> ResNet8x4": 0.6,
}
#: The teacher that is trained, the pair that has it, its precision, and the aim in seconds per epoch.
TRAINED_TEACHER, TEACHER_AIM = ("WRN-40-2 -> ShuffleNet-V1", "WRN-40-2", "bfloat16"), 2.6
#: Steps that the profiler looks at.
BUSY_STEPS = 5
#: Batches of 64 of an epoch of CIFAR-100.
STEPS = math.ceil(pairs.IMAGES / 64)

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Case:
    """A cohort whose steps are timed.

    Attributes:
        pair: Title of the pair.
        members: "KD", as many times as there are students; "Table 6", its eight methods; "teacher", the pair's teacher
            trained alone.
        students: Number of members.
        precision: Of all networks.
        compiled: Whether ``torch.compile`` is applied to all networks.
        eager: Whether steps without recordings are timed, too.
    """

    pair: str
    members: Literal["KD", "Table 6", "teacher"]
    students: int
    precision: Precision
    compiled: bool = False
    eager: bool = False

    @property
    def title(self) -> str:
        if self.members == "teacher":
            return f"{self.pair.split(' -> ')[0]} alone"
        return f"{self.pair}, " + (f"KD x {self.students}" if self.members == "KD" else "methods of Table 6")

    @property
    def name(self) -> str:
        return f"{self.title}, {self.precision}" + (", compiled" if self.compiled else "")

    @property
    def is_aimed_at(self) -> bool:
        """Whether it is a cohort of eight that an aim is compared with."""
        return self.members == "KD" and self.students > 1 and self.pair in AIMS

    def trials(self, planned: Mapping[str, Trial], students: int) -> list[Trial]:
        """Returns the members' settings.

        Args:
            planned: The pair's trials by method.
            students: Most members.
        """
        changes = {"precision": self.precision, "compile": "on" if self.compiled else "off"}
        if self.members == "teacher":
            taught_by = planned["kd"].teacher
            assert isinstance(taught_by, Trial)
            return [taught_by.model_copy(update=changes)]
        if self.members == "KD":
            trials = pairs.kd_at_temperatures(planned["kd"], self.students)
        else:
            trials = [planned[name] for name in pairs.METHODS][:students]
        return [trial.model_copy(update=changes) for trial in trials]


def plan_cases(context: Context) -> dict[str, list[Case]]:
    """Returns the cases by section: "speed", "methods" and "compiled". Those that matter most come first."""
    titles, many = list(context.trials), context.sizes.students
    teacher_pair = TRAINED_TEACHER[0] if TRAINED_TEACHER[0] in titles else titles[0]
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    of_table6 = [title for title in titles if title in AIMS and title != "ResNet32x4 -> ResNet8x4"] or titles
    return {
        "speed": [
            *(Case(title, "KD", many, "float32", eager=True) for title in titles),
            Case(teacher_pair, "teacher", 1, "bfloat16"),
            *(Case(title, "KD", many, "bfloat16") for title in titles),
        ],
        "methods": [Case(title, "Table 6", many, precision) for precision in precisions for title in of_table6],
        "compiled": [Case(title, "KD", many, "float32", compiled=True) for title in titles],
    }


def time_case(context: Context, case: Case) -> dict[str, Any]:
    """Times the steps of a cohort, and those of the first of its members alone.

    Returns:
        "recorded" and "eager", seconds per step in each round ("eager" is empty if it was not timed); for a large
        cohort of KD also "one_recorded" and "one_eager", the same for its first member alone; "peak", bytes of the
        whole cohort; "members", their number; "notes", what is not recorded and why.
    """
    device, sizes = context.device, context.sizes
    trials = case.trials(context.trials[case.pair], sizes.students)
    gpu_device.reset_memory(device)
    with collected_messages() as messages:
        cohort = SteppedCohort(trials, context.images, device, context.make_recorder(device, trials[0]))
        cohort.settle()
    counts = {"": len(trials)} | ({"one_": 1} if case.members == "KD" and len(trials) > 1 else {})
    result: dict[str, Any] = {f"{prefix}eager": [] for prefix in counts}
    for prefix, count in counts.items():
        cohort.choose_members(count)
        result[f"{prefix}recorded"] = gpu_device.step_seconds(cohort.step, sizes.steps, sizes.rounds, device)
    result["peak"] = gpu_device.peak_bytes(device)
    if case.eager:
        cohort.stop_recording()
        for prefix, count in counts.items():
            cohort.choose_members(count)
            cohort.step()
            result[f"{prefix}eager"] = gpu_device.step_seconds(cohort.step, sizes.eager_steps, 1, device)
    return result | {"members": len(trials), "notes": list(dict.fromkeys([*messages, *cohort.notes]))}


def measure_busy(context: Context, pair: str) -> dict[str, Any]:
    """Returns "fraction", that of the time of a large cohort's recorded steps in which the GPU runs a kernel."""
    device, sizes = context.device, context.sizes
    gpu_device.reset_memory(device)
    trials = Case(pair, "KD", sizes.students, "float32").trials(context.trials[pair], sizes.students)
    cohort = SteppedCohort(trials, context.images, device, context.make_recorder(device, trials[0]))
    cohort.settle()
    return {"fraction": gpu_device.busy_fraction(cohort.step, BUSY_STEPS, device)}


def speed_section(cases: Sequence[Case], results: Mapping[str, Any], busy: Mapping[str, float | None]) -> Section:
    """Returns the table of all measured cases, and the aims.

    Args:
        cases: All cases.
        results: Results of ``time_case`` by the case's name.
        busy: Fractions of the steps' time in which the GPU runs a kernel, by pair.
    """
    rows = [row for case in cases if case.name in results for row in _rows(case, results[case.name], busy)]
    headers = ["cohort", "recorded, ms a step", "without, ms", "times", "s an epoch", "and student", "GiB", "busy, %"]
    notes = [f"- {case.name}: {note}" for case in cases if case.name in results for note in results[case.name]["notes"]]
    introduction = (
        f"Steps of 64 images, {STEPS} of which are an epoch of CIFAR-100, with the median and the range over rounds. "
        "Teacher and students have random weights, and nothing is compiled unless a line says so. GiB: the most memory "
        "that torch has reserved, images included. Busy: part of the time in which at least one kernel runs. Without: "
        "the same step, each operation started from Python. An aim is reached if one of the measured ways reaches it."
    )
    text = "\n".join([introduction, *([""] if notes else []), *notes])
    return Section("Steps", text, [Table(headers, rows)] if rows else [], list(_aims(cases, results)))


def _rows(case: Case, result: Mapping[str, Any], busy: Mapping[str, float | None]) -> Iterator[list[str]]:
    """Yields the line of a case, and that of one of its members alone."""
    of_case = busy.get(case.pair) if case.is_aimed_at and case.precision == "float32" and not case.compiled else None
    memory = "-" if result["peak"] is None else f"{result['peak'] / 2**30:.2f}"
    last = [memory, "-" if of_case is None else f"{100 * of_case:.0f}"]
    yield [case.name, *_times(result["recorded"], result["eager"], result["members"]), *last]
    if "one_recorded" in result:
        single = replace(case, students=1)
        yield [single.name, *_times(result["one_recorded"], result["one_eager"], 1), "-", "-"]


def _times(recorded: Sequence[float], eager: Sequence[float], members: int) -> list[str]:
    step = statistics.median(recorded)
    low, high = 1e3 * min(recorded), 1e3 * max(recorded)
    return [
        f"{1e3 * step:.2f} ({low:.2f} to {high:.2f})",
        f"{1e3 * statistics.median(eager):.1f}" if eager else "-",
        f"{statistics.median(eager) / step:.1f}" if eager else "-",
        f"{STEPS * step:.2f}",
        f"{STEPS * step / members:.2f}",
    ]


def _aims(cases: Sequence[Case], results: Mapping[str, Any]) -> Iterator[Promise]:
    """Yields the aims. Each is compared with the fastest way that was measured, and the others are named, too."""
    measured: dict[str, dict[str, float]] = defaultdict(dict)
    for case in cases:
        if case.name in results and (case.is_aimed_at or case.members == "teacher"):
            seconds = STEPS * statistics.median(results[case.name]["recorded"]) / results[case.name]["members"]
            way = "compiled" if case.compiled else case.precision
            measured[case.pair if case.is_aimed_at else case.title][way] = seconds
    aims = AIMS | {f"{TRAINED_TEACHER[1]} alone": TEACHER_AIM}
    for title, aim in aims.items():
        if title in measured:
            text = ", ".join(f"{seconds:.2f} ({way})" for way, seconds in measured[title].items())
            reached = min(measured[title].values()) <= aim
            unit = "seconds an epoch" + (" and student" if title in AIMS else "")
            yield Promise(title, f"at most {aim} {unit}", text, reached)


def table6_section(cases: Sequence[Case], results: Mapping[str, Any], overhead: float | None) -> Section:
    """Returns what the recipe of Table 6 takes: the epochs of its plan with the measured steps.

    Args:
        cases: All cases.
        results: Results of ``time_case`` by the case's name.
        overhead: Time of a whole epoch relative to that of its steps; None if it was not measured.
    """
    cohort_epochs: dict[str, dict[str, int]] = defaultdict(dict)
    student_epochs: dict[str, int] = defaultdict(int)
    for planned in plan(read_recipe("cifar100/table6"), "cifar100/table6"):
        if planned.trial.teacher is not None:
            title = pairs.pair_title(planned)
            cohort_epochs[title][planned.trial.cohort_key] = planned.trial.epochs
            student_epochs[title] += planned.trial.epochs
    rows, totals = [], defaultdict(list)
    for title, by_cohort in cohort_epochs.items():
        row = [title, f"{student_epochs[title]:,}", f"{sum(by_cohort.values()):,}"]
        for precision in ("float32", "bfloat16"):
            names = [
                case.name
                for case in cases
                if (case.pair, case.members, case.precision) == (title, "Table 6", precision) and case.name in results
            ]
            hours = None
            if names:
                step = statistics.median(results[names[0]]["recorded"])
                hours = sum(by_cohort.values()) * STEPS * step * (overhead or 1) / 3600
            totals[precision].append(hours)
            row.append("-" if hours is None else f"{hours:.1f}")
        rows.append(row)
    sums = [
        "-" if any(value is None for value in hours) else f"{sum(filter(None, hours)):.1f}" for hours in totals.values()
    ]
    total = [sum(student_epochs.values()), sum(sum(by_cohort.values()) for by_cohort in cohort_epochs.values())]
    rows.append(["all", *(f"{count:,}" for count in total), *sums])
    headers = ["pair", "epochs of students", "of cohorts", "hours, float32", "hours, bfloat16"]
    factor = (
        "without evaluation, metrics and checkpoints, which were not measured"
        if overhead is None
        else f"times {overhead:.2f} for evaluation, metrics and checkpoints"
    )
    introduction = (
        "The trials of `recipes/cifar100/table6.yaml` with a teacher, in cohorts of eight methods, one after the "
        f"other on this card: measured steps, {factor}. Students without a teacher and teachers are not included."
    )
    return Section("All of Table 6", introduction, [Table(headers, rows)])
