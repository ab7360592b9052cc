"""Shows the progress of a run on standard error: a live table on a terminal, else plain lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table

from kd_bench.config.trial import PretrainedTeacher, Trial

#: A trial, or a teacher to import.
AnyTrial = Trial | PretrainedTeacher

#: Seconds between two plain lines about the same cohort.
PLAIN_SECONDS = 15.0


@dataclass
class _Row:
    """A cohort in training."""

    trials: Sequence[AnyTrial]
    labels: dict[str, str]
    last_printed: float
    epochs_done: float = 0.0
    rate: float | None = None
    top1: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        first = self.trials[0]
        return f"{_pair(first, sorted({trial.model for trial in self.trials}))}{_seed(first)}"

    @property
    def epoch(self) -> str:
        return f"epoch {int(self.epochs_done)}/{self.trials[0].epochs}"

    @property
    def speed(self) -> str:
        return f"{self.rate:.0f} images/s" if self.rate else ""

    @property
    def accuracies(self) -> str:
        return "  ".join(
            f"{label} {self.top1[trial]:.1f}" if trial in self.top1 else label for trial, label in self.labels.items()
        )


class ProgressDisplay:
    """Shows the progress of a recipe's run on a console, by default on standard error."""

    def __init__(self, name: str, console: Console | None = None) -> None:
        self.name = name
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._rows: dict[str, _Row] = {}
        self._labels: dict[str, str] = {}
        self._epochs_left: dict[str, int] = {}
        self._epochs_total = self._epochs_done = 0.0
        self._started = time.monotonic()

    def start(self, labels: Mapping[str, str], teachers: Sequence[AnyTrial], missing: Sequence[AnyTrial]) -> None:
        """Prints which teachers and trials are missing, and starts the live table on a terminal.

        ``labels`` is the table row of each trial of the recipe, by the trial's id. Teachers are trained or imported.
        """
        self._labels = {**labels, **{trial.id: "teacher" for trial in teachers}}
        self._epochs_left = {trial.id: trial.epochs for trial in [*teachers, *missing]}
        self._epochs_total = float(sum(self._epochs_left.values()))
        if not self._epochs_left:
            self.message(f"{self.name}: all is done ({_count(len(labels), 'trial')}); nothing to train")
            return
        trained = sum(isinstance(teacher, Trial) for teacher in teachers)
        imported = f", to read: {_count(len(teachers) - trained, 'teacher')}" if trained < len(teachers) else ""
        work = f"{_count(len(missing), 'trial')} and {_count(trained, 'teacher')}"
        self.message(f"{self.name}: to train: {work}{imported}")
        if self.console.is_terminal:
            self._live = Live(self._render(), console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def cohort_started(self, trials: Sequence[AnyTrial]) -> None:
        """Shows a worker that has started to train these trials."""
        if trials:
            row = _Row(trials, {trial.id: self._labels[trial.id] for trial in trials}, time.monotonic())
            self._rows |= {trial.id: row for trial in trials}
            self._print_plain(f"{row.name}: {', '.join(row.labels.values())}: started")

    def cohort_progress(self, trials: Sequence[AnyTrial], event: Mapping[str, Any]) -> None:
        """Shows the position of a cohort in its epoch, from a worker's ``progress`` event."""
        row = next((self._rows[trial.id] for trial in trials if trial.id in self._rows), None)
        if row is not None:
            row.epochs_done = event["epoch"] + event["step"] / event["steps"]
            row.rate = event["rate"]

    def epoch_finished(self, trial: AnyTrial, epoch: int, top1: float) -> None:
        """Shows a trial's accuracy, in percent, after an epoch (from 1)."""
        row = self._rows.get(trial.id)
        if row is None:
            return
        row.epochs_done, row.top1[trial.id] = float(epoch), top1
        if trial.id in self._epochs_left:
            left = trial.epochs - epoch
            self._epochs_done += self._epochs_left[trial.id] - left
            self._epochs_left[trial.id] = left
        complete = all(member.id in row.top1 for member in row.trials)
        if complete and trial is row.trials[-1] and time.monotonic() - row.last_printed > PLAIN_SECONDS:
            row.last_printed = time.monotonic()
            speed = f", {row.speed}" if row.speed else ""
            self._print_plain(f"{row.name}: {row.epoch}, {row.accuracies}{speed}{self._time_left()}")

    def trial_finished(self, trial: AnyTrial, top1: float | None, reason: str | None) -> None:
        """Prints a trial's accuracy, or the reason why it has failed."""
        if reason is None:
            self._print_plain(f"{self._title(trial)}: done, {top1:.2f} %{self._time_left()}")
        else:
            self.message(f"{self._title(trial)}: failed: {reason}")

    def trial_finished_by_other_process(self, trial: AnyTrial, top1: float | None) -> None:
        """Prints the result of a trial that another process has trained; ``top1`` is None if it has failed."""
        if trial.id in self._epochs_left:
            self._epochs_total -= self._epochs_left.pop(trial.id)
            outcome = "failed" if top1 is None else f"done, {top1:.2f} %"
            self._print_plain(f"{self._title(trial)}: {outcome} (by another process)")

    def cohort_ended(self, trials: Sequence[AnyTrial]) -> None:
        """Removes the row of a worker that has ended."""
        for trial in trials:
            self._rows.pop(trial.id, None)

    def message(self, text: str) -> None:
        """Prints a sentence."""
        self.console.print(text, markup=False)

    def refresh(self) -> None:
        """Redraws the live table."""
        if self._live:
            self._live.update(self._render())

    def close(self) -> None:
        """Removes the live table."""
        if self._live:
            self._live.stop()
            self._live = None

    def _title(self, trial: AnyTrial) -> str:
        return f"{_pair(trial, [trial.model])}, {self._labels[trial.id]}{_seed(trial)}"

    def _time_left(self) -> str:
        elapsed = time.monotonic() - self._started
        if self._epochs_done < 1 or elapsed < 5:
            return ""
        seconds = (self._epochs_total - self._epochs_done) * elapsed / self._epochs_done
        return f", about {_duration(seconds)} left" if seconds >= 1 else ""

    def _render(self) -> Group:
        done = sum(left == 0 for left in self._epochs_left.values())
        table = Table.grid(padding=(0, 2))
        for _ in range(5):
            table.add_column(no_wrap=True)
        for row in {id(row): row for row in self._rows.values()}.values():
            bar = ProgressBar(total=row.trials[0].epochs, completed=row.epochs_done, width=16)
            table.add_row(row.name, bar, row.epoch, row.speed, row.accuracies)
        return Group(f"{self.name}: {done} of {len(self._epochs_left)} trainings done{self._time_left()}", table)

    def _print_plain(self, text: str) -> None:
        if not self._live:
            self.message(text)


def _pair(trial: AnyTrial, students: Sequence[str]) -> str:
    return f"{trial.teacher.model} -> {', '.join(students)}" if trial.teacher else ", ".join(students)


def _seed(trial: AnyTrial) -> str:
    return f", seed {trial.seed}" if isinstance(trial, Trial) else ", given weights"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def download_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a download on standard error. Yields a function to call with the bytes so far and the total, if known."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
