"""How long what is missing of a recipe would take: here, from a few timed steps, and on GPUs, from counted operations.

Cohorts that differ in their seeds only are one group, which is timed and counted once.
"""

from __future__ import annotations

import heapq
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.config.trial import PlannedTrial, PretrainedTeacher, Trial, identity
from kd_bench.estimate import placeholders, timing
from kd_bench.estimate.gpus import Assumptions, Gpu, seconds
from kd_bench.launch import local_process
from kd_bench.launch.scheduler import group_into_cohorts
from kd_bench.trials.environment import describe
from kd_bench.trials.folder import TEACHERS, TrialFolder
from kd_bench.utils.errors import RunFailed

if TYPE_CHECKING:
    from kd_bench.estimate.step_cost import CohortCost

#: Seconds that timing may take for all groups together, where the number of steps was not asked for; and for each of
#: them where it was.
BUDGET, PATIENCE = 60.0, 600.0

#: Settings that a step costs the same for whatever they are.
_INDIFFERENT = {"seed", "epochs", "schedule", "schema", "teacher"}


@dataclass(frozen=True)
class EstimateOptions:
    """How the recipe would be run, and how it is to be estimated.

    Attributes:
        out: Results folder.
        data: Where data sets are; None for the default.
        jobs: Cohorts at once; None: one a GPU, or as many as the cores allow.
        threads: Threads of a cohort on the CPU.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.
        cohort_size: Most students in one process.
        workers: Processes of each cohort that decode images, where these are not held in memory.
        steps: Full steps to time of each group; 0 for none; None for as many as fit into about a minute.
    """

    out: Path
    data: Path | None = None
    jobs: int | None = None
    threads: int = 1
    device: str = "auto"
    cohort_size: int = 8
    workers: int = 0
    steps: int | None = None


@dataclass(frozen=True)
class Epoch:
    """Seconds of an epoch of a cohort.

    Attributes:
        shared: Images and teacher, once whatever the number of students.
        own: Each student's forward and backward passes and steps.
        evaluation: Of all students.
        checkpoint: Of all students.
        startup: Before the first epoch, once a process.
    """

    shared: float
    own: tuple[float, ...]
    evaluation: float
    checkpoint: float = 0.0
    startup: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.shared + sum(self.own) + self.evaluation + self.checkpoint

    @property
    def alone(self) -> float:
        """All of it, were each student trained in a process of its own."""
        return self.seconds + (len(self.own) - 1) * self.shared


@dataclass
class CohortGroup:
    """Cohorts that cost the same.

    Attributes:
        title: The networks.
        labels: The table's rows, one a member.
        trials: The members of one of them.
        teaches: Whether these are trainings of teachers.
        epochs: What is left to train of each of them, in epochs.
        images: Training images of an epoch, and test images.
        counts: What was counted.
        here: What an epoch takes on this machine; None where it was not timed.
        cards: What an epoch would take on a card, by its name.
        timing: What ``here`` is from.
        notes: What is to be said of it.
    """

    title: str
    labels: tuple[str, ...]
    trials: list[Trial]
    teaches: bool = False
    epochs: list[int] = field(default_factory=list)
    images: tuple[int, int] = (0, 0)
    counts: CohortCost | None = None
    here: Epoch | None = None
    cards: dict[str, Epoch] = field(default_factory=dict)
    timing: timing.Timing | None = None
    notes: list[str] = field(default_factory=list)

    def hours(self, epoch: Epoch, *, alone: bool = False) -> float:
        """Hours of all its cohorts, one after the other.

        Args:
            epoch: What an epoch takes.
            alone: As if every student were trained in a process of its own.
        """
        each = epoch.alone if alone else epoch.seconds
        starts = len(self.epochs) * (len(self.trials) if alone else 1)
        return (each * sum(self.epochs) + epoch.startup * starts) / 3600


@dataclass
class RecipeCost:
    """What a recipe would take.

    Attributes:
        recipe: Its name.
        groups: Teachers that are to be trained, then students.
        places: The devices that cohorts would be spread over, one a cohort at once.
        device: This machine's device, for people.
        finished: Trials that have a result.
        read: Teachers whose weights are to be read from files and tested.
        notes: What stands in for what is not here.
    """

    recipe: str
    groups: list[CohortGroup]
    places: list[str]
    device: str
    finished: int
    read: int
    notes: list[str]

    @property
    def timed(self) -> bool:
        """Whether all that is missing was timed here."""
        return bool(self.groups) and all(group.here for group in self.groups)

    def hours(self, card: str | None = None, *, alone: bool = False) -> float:
        """Hours of all cohorts, one after the other, here or on a card.

        Args:
            card: The card's name; None for this machine.
            alone: As if every student were trained in a process of its own.
        """
        found = [(group, group.here if card is None else group.cards[card]) for group in self.groups]
        return sum(group.hours(epoch, alone=alone) for group, epoch in found if epoch)

    def wall_hours(self) -> float:
        """Hours from beginning to end on this machine, cohorts spread over its places, teachers first."""
        free = [0.0] * len(self.places)
        taught: dict[str, float] = {}
        # What need not wait for a teacher goes first, as it does in a run.
        for group in sorted(self.groups, key=lambda group: (not group.teaches, group.trials[0].teacher is not None)):
            for epochs in group.epochs:
                if group.here is None:
                    continue
                teacher = group.trials[0].teacher
                began = max(heapq.heappop(free), taught.get(teacher.model, 0.0) if teacher else 0.0)
                ended = began + group.here.seconds * epochs + group.here.startup
                heapq.heappush(free, ended)
                if group.teaches:
                    taught |= {trial.model: ended for trial in group.trials}
        return max(free) / 3600


def cost_key(trial: Trial) -> str:
    """What trials have in common of which a step costs the same."""
    settings = trial.model_dump(mode="json", exclude=_INDIFFERENT)
    teacher = trial.teacher
    seen = None if teacher is None else [teacher.model, teacher.input.model_dump(mode="json")]
    return identity({"settings": settings, "teacher": seen})


def group(planned: Sequence[PlannedTrial], options: EstimateOptions, name: str) -> tuple[list[CohortGroup], int, int]:
    """What is missing, in groups; how many trials have a result; and how many teachers are to be read from files.

    Args:
        planned: The recipe's trials.
        options: How it would be run.
        name: The recipe's name.
    """
    labels = {one.trial_id: one.label for one in planned}
    trials = {one.trial_id: one.trial for one in planned}
    folder = options.out / name
    missing = [trial for trial in trials.values() if _status(folder, trial) == "missing"]
    wanted = {trial.teacher.id: trial.teacher for trial in missing if trial.teacher is not None}
    teachers = [one for one in wanted.values() if _status(options.out / TEACHERS, one) == "missing"]
    trained = [one for one in teachers if isinstance(one, Trial)]
    found: dict[tuple[str, ...], CohortGroup] = {}
    for some, place in ((trained, options.out / TEACHERS), (missing, folder)):
        for cohort in group_into_cohorts(some, place, options.cohort_size):
            members = [one for one in cohort.trials if isinstance(one, Trial)]
            key = tuple(map(cost_key, members))
            if key not in found:
                named = tuple("teacher" if some is trained else labels[one.id] for one in members)
                found[key] = CohortGroup(_title(members), named, members, teaches=some is trained)
            found[key].epochs.append(max(one.epochs - _epochs_done(place, one) for one in members))
    return list(found.values()), len(trials) - len(missing), len(teachers) - len(trained)


def estimate_recipe(
    planned: Sequence[PlannedTrial],
    options: EstimateOptions,
    name: str,
    cards: dict[str, Gpu],
    assumed: Assumptions,
    say: Callable[[str], None],
) -> RecipeCost:
    """Estimates what is missing of a recipe.

    Args:
        planned: Its trials.
        options: How it would be run.
        name: Its name.
        cards: GPUs to estimate it for.
        assumed: What their data sheets do not say.
        say: Told what is being done.

    Raises:
        UserError: Where networks and methods do not fit together, or nothing is known of the images.
        RunFailed: Where the process that times something ends without an answer.
    """
    groups, finished, read = group(planned, options, name)
    places = _places(options)
    notes: list[str] = []
    found = RecipeCost(name, groups, places, describe(places[0], options.threads)["device_name"], finished, read, notes)
    for place, one in enumerate(groups, 1):
        say(f"counting the operations of {one.title} ({place} of {len(groups)})")
        notes += [note for note in _count(one, options, cards, assumed) if note not in notes]
    if options.steps != 0:
        notes += _load()
        _time(groups, options, places, say)
        notes += [note for one in groups if one.timing and (note := one.timing.stand_in) and note not in notes]
    return found


def _count(one: CohortGroup, options: EstimateOptions, cards: dict[str, Gpu], assumed: Assumptions) -> list[str]:
    from kd_bench.estimate import step_cost

    first = one.trials[0]
    images, stand_in = placeholders.images(first.dataset, first.pipeline, options.data)
    one.images = len(images.train_labels), len(images.test_labels)
    one.counts = counts = step_cost.count(one.trials, images)
    for label, member in zip(one.labels, counts.members, strict=True):
        if member.uncounted:
            one.notes.append(f"{label}: only its student could be counted, not its method ({member.uncounted})")
    steps = max(1, one.images[0] // first.batch_size)
    for name, card in cards.items():

        def took(what: Any, training: bool, card: Gpu = card) -> float:
            return seconds(what, card, assumed, training=training)

        one.cards[name] = Epoch(
            shared=took(counts.teacher, False) * counts.parts * steps,
            own=tuple(
                (took(member.step, True) * counts.parts + took(member.update, True)) * steps
                for member in counts.members
            ),
            evaluation=sum(took(member.evaluation, False) for member in counts.members) * one.images[1] / counts.images,
        )
    return [stand_in] if stand_in else []


def _time(groups: list[CohortGroup], options: EstimateOptions, places: list[str], say: Callable[[str], None]) -> None:
    """Times all groups, as many at once as cohorts would run at once, so that they share the machine as they would."""
    rounds = [some for phase in _phases(groups) for some in _rounds(phase, len(places))]
    allowed = BUDGET / max(1, len(rounds)) if options.steps is None else PATIENCE
    found: dict[int, list[timing.Timing]] = {}
    for some in rounds:
        say(f"timing {', '.join(dict.fromkeys(one.title for one in some))}")
        running = [_start(one, options, place, allowed) for one, place in zip(some, places, strict=False)]
        try:
            for one, started in zip(some, running, strict=True):
                answer = _answer(started, one)
                note = f"{one.title}: could not be timed: {answer.get('error')}"
                if "error" not in answer:
                    found.setdefault(id(one), []).append(timing.Timing(**answer))
                elif note not in one.notes:
                    one.notes.append(note)
        finally:
            for process, _ in running:
                process.kill()
                process.wait()
    for one in groups:
        several = found.get(id(one))
        if several:
            one.timing = slowest = max(several, key=lambda this: this.shared + sum(this.own))
            one.here = Epoch(
                slowest.shared, tuple(slowest.own), slowest.evaluation, slowest.checkpoint, slowest.startup
            )


def _phases(groups: Sequence[CohortGroup]) -> list[list[CohortGroup]]:
    """What may run at the same time: those that wait for a teacher run later than the rest."""
    if not any(one.teaches for one in groups):
        return [list(groups)]
    waiting = [one for one in groups if one.trials[0].teacher is not None]
    return [[one for one in groups if one not in waiting], waiting]


def _rounds(groups: list[CohortGroup], places: int) -> list[list[CohortGroup]]:
    """The groups, as many at once as of their cohorts would run; the last round is filled up with repetitions."""
    at_once = min(places, sum(len(one.epochs) for one in groups))
    count = -(-len(groups) // at_once) if at_once else 0
    return [[groups[(turn * at_once + place) % len(groups)] for place in range(at_once)] for turn in range(count)]


def _start(
    one: CohortGroup, options: EstimateOptions, place: str, allowed: float
) -> tuple[subprocess.Popen[bytes], Any]:
    teacher = one.trials[0].teacher
    taught = TrialFolder(options.out / TEACHERS / teacher.id) if teacher else None
    job = timing.TimingJob(
        trials=[trial.settings() for trial in one.trials],
        teacher=str(taught.weights) if taught and taught.status() == "done" else None,
        data=str(options.data) if options.data else None,
        device=place,
        threads=options.threads,
        workers=options.workers,
        steps=options.steps,
        seconds=allowed,
    )
    log = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-m", "kd_bench.estimate.timing"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=os.environ | local_process.variables(options.threads),
    )
    assert process.stdin is not None
    process.stdin.write((json.dumps(asdict(job)) + "\n").encode())
    process.stdin.close()
    return process, log


def _answer(started: tuple[subprocess.Popen[bytes], Any], one: CohortGroup) -> dict[str, Any]:
    process, log = started
    assert process.stdout is not None
    text = process.stdout.read()
    code = process.wait()
    log.seek(0)
    words = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    log.close()
    if code or not text:
        why = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        raise RunFailed(f"{one.title}: the process that timed it {why}{f': {words[-1]}' if words else ''}")
    answer: dict[str, Any] = json.loads(text)
    return answer


def _places(options: EstimateOptions) -> list[str]:
    found = local_process.devices(options.device)
    if found == ["cpu"]:
        return ["cpu"] * (options.jobs or max(1, (os.cpu_count() or 1) // options.threads))
    jobs = options.jobs or len(found)
    return [found[index % len(found)] for index in range(jobs)]


def _load() -> list[str]:
    """Says so where others are using the processor, which the times have in them."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < 0.5 * cores:
        return []
    return [f"other work was running when the timing began (load {load:.1f}, cores {cores}); alone, it may be faster"]


def _status(folder: Path, trial: Trial | PretrainedTeacher) -> str:
    return TrialFolder(folder / trial.id).status()


def _epochs_done(folder: Path, trial: Trial) -> int:
    try:
        lines = (folder / trial.id / "metrics.csv").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return max(0, len(lines) - 1)


def _title(members: Iterable[Trial]) -> str:
    members = list(members)
    students = ", ".join(dict.fromkeys(one.model for one in members))
    teacher = members[0].teacher
    return f"{teacher.model} -> {students}" if teacher else students
