"""The tables of a column, the aims, and of those that are missed where the time goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from benchmarks import measure
from benchmarks.column import Found
from benchmarks.pairs import ALONE, LOGIT_METHODS, METHODS, Step
from benchmarks.writing import Promise, Section, Table, spread

#: Times less CPU seconds than the reference loop that are aimed at: all eight methods, and the logit methods alone.
AIMS = {
    "ResNet32x4 -> ShuffleNet-V1": (2.0, 2.2),
    "WRN-40-2 -> ShuffleNet-V1": (1.7, 1.7),
    "VGG13 -> MobileNet-V2": (1.7, 1.7),
    "ResNet50 -> MobileNet-V2": (2.5, 4.0),
    "ResNet32x4 -> ShuffleNet-V2": (2.0, 2.2),
}
#: The same for a trial of a logit method whose teacher's logits are all in the store, compared with one without.
CACHED = ("ResNet32x4 -> ShuffleNet-V1", 2.3)
#: Times its floor that a cohort may cost at most.
FLOOR = 1.1

_HEADERS = ["pair", "n", "cohort", "one by one", "reference", "reference / cohort", "aim", "one by one / cohort"]
_HEADERS += ["floor", "cohort / floor"]

#: Methods that a profile shows by name.
_NAMED = {
    "ReviewKD": ("reviewkd",),
    "OFD": ("ofd",),
    "CRD": ("crd",),
    "other methods": tuple(label for label in METHODS if label not in {"reviewkd", "ofd", "crd"}),
}


def section(found: Sequence[Found]) -> Section:
    result = Section(
        "A column of Table 6",
        f"Eight methods, one seed: CPU seconds of a step of all eight trials, batches of {found[0].batch}, as medians "
        "and ranges of n rounds. Our first losses are those of the reference loop to "
        f"{max(one.difference for one in found):.0e} of their value.",
    )
    rows, logits, profile, known = [], [], [], []
    for one in found:
        cohort, floors, theirs = [step.total for step in one.cohort], one.floors(), one.published()
        alone = one.one_by_one()
        aim, logit_aim = AIMS.get(one.title, (None, None))
        less, to_floor = measure.ratio(cohort, theirs), measure.ratio(floors, cohort)
        times = map(spread, (cohort, alone, theirs, _ratios(theirs, cohort)))
        others = spread(_ratios(alone, cohort)), spread(floors), spread(_ratios(cohort, floors))
        rows.append([one.title, one.rounds, *times, aim or "", *others])
        four, published = [step.total for step in one.logits], one.published(LOGIT_METHODS)
        found_logits = measure.ratio(four, published)
        logits.append(
            [one.title, one.rounds, spread(four), spread(published), spread(_ratios(published, four)), logit_aim or ""]
        )
        profile.append([one.title, *_profile(one).values()])
        warm, cold = ([step.total for step in some] for some in (one.cached, one.alone["kd"]))
        known.append([one.title, one.rounds, spread(cold), spread(warm), spread(_ratios(cold, warm))])
        if one.title == CACHED[0]:
            ratio = measure.ratio(warm, cold)
            result.promises.append(
                Promise(
                    f"{one.title}, KD with known logits",
                    f"{CACHED[1]} times less than without",
                    f"{ratio:.2f}",
                    ratio >= CACHED[1],
                    _why_logits(one.cached, "a step with known logits"),
                )
            )
        why = _why(one)
        if aim and logit_aim:
            result.promises += [
                Promise(one.title, f"{aim} times less than the reference", f"{less:.2f}", less >= aim, why),
                Promise(
                    f"{one.title}, logit methods alone",
                    f"{logit_aim} times less",
                    f"{found_logits:.2f}",
                    found_logits >= logit_aim,
                    _why_logits(one.logits, "the cohort's step"),
                ),
                Promise(one.title, f"at most {FLOOR} times its floor", f"{to_floor:.2f}", to_floor <= FLOOR, why),
            ]
    result.tables = [
        Table(
            _HEADERS,
            rows,
        ),
        Table(
            ["pair", "n", "cohort", "reference", "reference / cohort", "aim"],
            logits,
            "The logit methods alone: KD, DKD, IKL-KD and DIST, four trials.",
        ),
        Table(
            ["pair", "n", "KD", "with known logits", "ratio"],
            known,
            "A trial of KD alone, and the same with the teacher's logits of its views in the store.",
        ),
        Table(
            ["pair", *_profile(found[0])],
            profile,
            "Where a cohort's step goes, milliseconds. Methods are their losses and what their backward pass takes "
            "more than a plain student's.",
        ),
    ]
    return result


def _ratios(ones: list[float], others: list[float]) -> list[float]:
    return [a / b for a, b in zip(ones, others, strict=True)]


def _parts(found: Found) -> dict[str, float]:
    """CPU seconds of the parts of a cohort's step, medians; OFD's teacher is what it takes when it is alone."""

    def median(of: Callable[[Step], float], steps: list[Step] = found.cohort) -> float:
        return statistics.median(map(of, steps))

    own = median(lambda step: step.of("teacher"), found.alone["ofd"])
    plain = median(lambda step: step.of("backward"), found.alone[ALONE])
    parts = {
        "data": median(lambda step: step.of("data")),
        "teacher": median(lambda step: step.of("teacher")) - own,
        "OFD's teacher": own,
        "forward": median(lambda step: step.of("forward")),
        "backward": plain * len(METHODS),
    }
    for name, labels in _NAMED.items():
        parts[name] = sum(
            median(lambda step, label=label: step.of("loss", "backward", owner=label)) - plain for label in labels
        )
    return parts | {
        "optimiser": median(lambda step: step.of("optimiser")),
        "rest": median(lambda step: step.of("rest")),
    }


def _profile(found: Found) -> dict[str, str]:
    return {name: f"{1e3 * took:,.0f}" for name, took in _parts(found).items()}


def _why(found: Found) -> str:
    """Where the time is, and what would be left to win."""
    parts = _parts(found)
    whole = sum(parts.values())
    shares = sorted(parts.items(), key=lambda item: -item[1])
    largest = ", ".join(f"{name} {100 * took / whole:.0f} %" for name, took in shares if took > 0.05 * whole)
    at_floor = measure.ratio(found.floors(), found.published())
    return f"Of the cohort's step: {largest}. At its floor it would be {at_floor:.2f} times less than the reference."


def _why_logits(taken: list[Step], what: str) -> str:
    names = {
        "teacher": ("teacher",),
        "students' forward pass": ("forward",),
        "backward pass": ("backward",),
        "losses": ("loss",),
        "the rest": ("data", "optimiser", "rest"),
    }
    shares = {name: statistics.median(step.of(*parts) / step.total for step in taken) for name, parts in names.items()}
    return f"Of {what}: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items()) + "."
