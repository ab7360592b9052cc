"""The tables of a column of Table 6, its promises, and where the time goes if a promise is missed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.column_times import ColumnTimes
from benchmarks.markdown import Promise, Section, Table, median_and_range, milliseconds
from benchmarks.measure import median_ratio, ratios
from benchmarks.pairs import ALONE, LOGIT_METHODS, METHODS
from benchmarks.step_times import PARTS, StepTimes

#: Promised ratios of CPU seconds of the reference loop to those of a cohort: all eight methods, and the logit methods.
PROMISED = {
    "ResNet32x4 -> ShuffleNet-V1": (2.0, 2.2),
    "WRN-40-2 -> ShuffleNet-V1": (1.7, 1.7),
    "VGG13 -> MobileNet-V2": (1.7, 1.7),
    "ResNet50 -> MobileNet-V2": (2.5, 4.0),
    "ResNet32x4 -> ShuffleNet-V2": (2.0, 2.2),
}
#: Promised ratio of a trial of a logit method to the same trial with all logits of the teacher cached.
PROMISED_CACHED = ("ResNet32x4 -> ShuffleNet-V1", 2.3)
#: Promised ratio of a cohort to its floor, at most.
PROMISED_FLOOR = 1.1

#: Methods in the table of where the time goes.
_PROFILED = {
    "ReviewKD": ("reviewkd",),
    "OFD": ("ofd",),
    "CRD": ("crd",),
    "other methods": tuple(label for label in METHODS if label not in {"reviewkd", "ofd", "crd"}),
}


def section(columns: Sequence[ColumnTimes]) -> Section:
    """Returns the tables and promises of the columns."""
    return Section(
        "A column of Table 6",
        f"Eight methods, one seed: CPU seconds of a step of all eight trials, batches of {columns[0].batch_size}, as "
        "medians and ranges of n rounds. Our first losses differ from those of the reference loop by at most "
        f"{max(column.difference for column in columns):.0e} of their value.",
        [
            Table(
                ["pair", "n", "cohort", "one by one", "reference", "reference / cohort", "aim", "one by one / cohort",
                 "floor", "cohort / floor"],
                [_cohort_row(column) for column in columns],
            ),
            Table(
                ["pair", "n", "cohort", "reference", "reference / cohort", "aim"],
                [_logit_row(column) for column in columns],
                "The logit methods alone: KD, DKD, IKL-KD and DIST, four trials.",
            ),
            Table(
                ["pair", "n", "KD", "with cached logits", "ratio"],
                [_cached_row(column) for column in columns],
                "A trial of KD alone, and the same with the teacher's logits in the cache.",
            ),
            Table(
                ["pair", *_parts(columns[0])],
                [[column.title, *(f"{1e3 * part:,.0f}" for part in _parts(column).values())] for column in columns],
                "Where a cohort's step goes, milliseconds. Methods are their losses, and their backward pass less that "
                "of a plain student.",
            ),
        ],
        [promise for column in columns for promise in _promises(column)],
    )  # fmt: skip


def steps_section(columns: Sequence[ColumnTimes]) -> Section:
    """Returns a table of the parts of each method's step."""
    rows = []
    for column in columns:
        for label, steps in column.alone.items():
            parts = [milliseconds(median(step.part(part) for step in steps)) for part in PARTS]
            rows.append([column.title, label, len(steps), median_and_range(_totals(steps), 1e3, 0), *parts])
    return Section(
        "One step of each method",
        "Milliseconds of the CPU for one step of one trial alone with its teacher, medians (and ranges) of n rounds. "
        f"{ALONE} is the student alone.",
        [Table(["pair", "method", "n", "step", *PARTS], rows)],
    )


def _totals(steps: Sequence[StepTimes]) -> list[float]:
    return [step.total for step in steps]


def _cohort_row(column: ColumnTimes) -> list[object]:
    cohort, one_by_one = _totals(column.cohort), column.one_by_one_seconds()
    reference, floor = column.reference_seconds(), column.floor_seconds()
    promised = PROMISED.get(column.title, ("",))[0]
    seconds = map(median_and_range, (cohort, one_by_one, reference, ratios(reference, cohort)))
    others = map(median_and_range, (ratios(one_by_one, cohort), floor, ratios(cohort, floor)))
    return [column.title, column.rounds, *seconds, promised, *others]


def _logit_row(column: ColumnTimes) -> list[object]:
    cohort, reference = _totals(column.logit_cohort), column.reference_seconds(LOGIT_METHODS)
    promised = PROMISED.get(column.title, ("", ""))[1]
    seconds = map(median_and_range, (cohort, reference, ratios(reference, cohort)))
    return [column.title, column.rounds, *seconds, promised]


def _cached_row(column: ColumnTimes) -> list[object]:
    kd, cached = _totals(column.alone["kd"]), _totals(column.cached)
    return [column.title, column.rounds, *map(median_and_range, (kd, cached, ratios(kd, cached)))]


def _promises(column: ColumnTimes) -> list[Promise]:
    title, promises = column.title, []
    cohort, logit_cohort = _totals(column.cohort), _totals(column.logit_cohort)
    if title == PROMISED_CACHED[0]:
        ratio, promised = median_ratio(_totals(column.alone["kd"]), _totals(column.cached)), PROMISED_CACHED[1]
        reason = _largest_parts(column.cached, "a step with cached logits")
        promises.append(_promise(f"{title}, KD with cached logits", promised, " than without", ratio, reason))
    if title in PROMISED:
        promised, promised_logits = PROMISED[title]
        reference, reason = column.reference_seconds(), _reason(column)
        promises.append(_promise(title, promised, " than the reference", median_ratio(reference, cohort), reason))
        ratio = median_ratio(column.reference_seconds(LOGIT_METHODS), logit_cohort)
        logit_reason = _largest_parts(column.logit_cohort, "the cohort's step")
        promises.append(_promise(f"{title}, logit methods alone", promised_logits, "", ratio, logit_reason))
        ratio = median_ratio(cohort, column.floor_seconds())
        limit = f"at most {PROMISED_FLOOR} times its floor"
        promises.append(Promise(title, limit, f"{ratio:.2f}", ratio <= PROMISED_FLOOR, reason))
    return promises


def _promise(subject: str, promised: float, compared: str, ratio: float, reason: str) -> Promise:
    return Promise(subject, f"{promised} times less{compared}", f"{ratio:.2f}", ratio >= promised, reason)


def _parts(column: ColumnTimes) -> dict[str, float]:
    """Returns median CPU seconds of the parts of a cohort's step. OFD's teacher is that of OFD alone."""

    def part(seconds: Callable[[StepTimes], float], steps: Sequence[StepTimes] = column.cohort) -> float:
        return median(map(seconds, steps))

    ofd_teacher = part(lambda step: step.part("teacher"), column.alone["ofd"])
    plain_backward = part(lambda step: step.part("backward"), column.alone[ALONE])
    methods = {
        name: sum(
            part(lambda step, label=label: step.part("loss", "backward", member=label)) - plain_backward
            for label in labels
        )
        for name, labels in _PROFILED.items()
    }
    return {
        "data": part(lambda step: step.part("data")),
        "teacher": part(lambda step: step.part("teacher")) - ofd_teacher,
        "OFD's teacher": ofd_teacher,
        "forward": part(lambda step: step.part("forward")),
        "backward": plain_backward * len(METHODS),
        **methods,
        "optimiser": part(lambda step: step.part("optimiser")),
        "rest": part(lambda step: step.part("rest")),
    }


def _reason(column: ColumnTimes) -> str:
    """Says where the time of the cohort goes, and what the floor would be."""
    parts = _parts(column)
    total = sum(parts.values())
    shares = sorted(((seconds / total, name) for name, seconds in parts.items()), reverse=True)
    largest = ", ".join(f"{name} {100 * share:.0f} %" for share, name in shares if share > 0.05)
    ratio = median_ratio(column.reference_seconds(), column.floor_seconds())
    return f"Of the cohort's step: {largest}. At its floor it would be {ratio:.2f} times less than the reference."


def _largest_parts(steps: Sequence[StepTimes], step_name: str) -> str:
    names = {
        "teacher": ("teacher",),
        "students' forward pass": ("forward",),
        "backward pass": ("backward",),
        "losses": ("loss",),
        "the rest": ("data", "optimiser", "rest"),
    }
    shares = {name: median(step.part(*parts) / step.total for step in steps) for name, parts in names.items()}
    return f"Of {step_name}: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items()) + "."
