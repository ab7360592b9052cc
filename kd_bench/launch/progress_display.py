"""One tidy display of a run's progress: a live one on a terminal, plain lines elsewhere. Always on standard error."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table

from kd_bench.config.trial import PretrainedTeacher, Trial

#: Seconds between two plain lines about the same cohort.
PLAIN_EVERY = 15.0


@dataclass
class _Row:
    """A cohort under way."""

    trials: Sequence[Trial | PretrainedTeacher]
    labels: dict[str, str]
    told: float
    done: float = 0.0
    rate: float | None = None
    top1: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        first = self.trials[0]
        networks = sorted({trial.model for trial in self.trials})
        pair = f"{first.teacher.model} -> " if first.teacher else ""
        return f"{pair}{', '.join(networks)}{_seed(first)}"

    @property
    def epochs(self) -> str:
        return f"epoch {int(self.done)}/{self.trials[0].epochs}"

    @property
    def accuracies(self) -> str:
        return "  ".join(
            f"{label} {self.top1[trial]:.1f}" if trial in self.top1 else label for trial, label in self.labels.items()
        )


class Display:
    """Tells a person how far a run is.

    Args:
        name: The recipe's.
        console: Where to write; by default standard error.
    """

    def __init__(self, name: str, console: Console | None = None) -> None:
        self.name = name
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._rows: dict[str, _Row] = {}
        self._labels: dict[str, str] = {}
        self._work: dict[str, int] = {}
        self._units = self._units_done = 0.0
        self._began = time.monotonic()

    def begin(
        self,
        labels: dict[str, str],
        teachers: Sequence[Trial | PretrainedTeacher],
        missing: Sequence[Trial | PretrainedTeacher],
    ) -> None:
        """Says what there is to do.

        Args:
            labels: The table's row of each trial of the recipe, by the trial's identity.
            teachers: Teachers that have to be trained, or read from their files.
            missing: Trials that have to be trained.
        """
        self._labels = labels | {trial.id: "teacher" for trial in teachers}
        self._work = {trial.id: trial.epochs for trial in [*teachers, *missing]}
        self._units = float(sum(self._work.values()))
        if not self._work:
            self._say(f"{self.name}: all is done ({_count(len(labels), 'trial')}); nothing to train")
            return
        trained = sum(isinstance(teacher, Trial) for teacher in teachers)
        given = f", to read: {_count(len(teachers) - trained, 'teacher')}" if trained < len(teachers) else ""
        self._say(f"{self.name}: to train: {_count(len(missing), 'trial')} and {_count(trained, 'teacher')}{given}")
        if self.console.is_terminal:
            self._live = Live(self._render(), console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def started(self, trials: Sequence[Trial | PretrainedTeacher]) -> None:
        """A worker has begun with these trials."""
        if trials:
            row = _Row(trials, {trial.id: self._labels[trial.id] for trial in trials}, time.monotonic())
            for trial in trials:
                self._rows[trial.id] = row
            self._plain(f"{row.name}: {', '.join(row.labels.values())}: started")

    def progress(self, trials: Sequence[Trial | PretrainedTeacher], event: dict[str, Any]) -> None:
        """How far a cohort is in its epoch."""
        row = self._row(trials)
        if row is not None:
            row.done = event["epoch"] + event["step"] / event["steps"]
            row.rate = event["rate"]

    def epoch(self, trial: Trial | PretrainedTeacher, epoch: int, top1: float) -> None:
        """A trial has finished an epoch."""
        row = self._rows.get(trial.id)
        if row is None:
            return
        row.done, row.top1[trial.id] = float(epoch), top1
        if trial.id in self._work:
            left = trial.epochs - epoch
            self._units_done += self._work[trial.id] - left
            self._work[trial.id] = left
        complete = all(one.id in row.top1 for one in row.trials)
        if complete and trial is row.trials[-1] and time.monotonic() - row.told > PLAIN_EVERY:
            row.told = time.monotonic()
            rate = f", {row.rate:.0f} images/s" if row.rate else ""
            self._plain(f"{row.name}: {row.epochs}, {row.accuracies}{rate}{self._left()}")

    def finished(self, trial: Trial | PretrainedTeacher, top1: float | None, reason: str | None) -> None:
        """A trial is done, or failed for a reason."""
        if reason is None:
            self._plain(f"{self._about(trial)}: done, {top1:.2f} %{self._left()}")
        else:
            self._say(f"{self._about(trial)}: failed: {reason}")

    def finished_elsewhere(self, trial: Trial | PretrainedTeacher, top1: float | None) -> None:
        """Another process finished a trial that this run wanted."""
        if trial.id in self._work:
            self._units -= self._work.pop(trial.id)
            outcome = "failed" if top1 is None else f"done, {top1:.2f} %"
            self._plain(f"{self._about(trial)}: {outcome} (by another process)")

    def ended(self, trials: Sequence[Trial | PretrainedTeacher]) -> None:
        """A worker has ended."""
        for trial in trials:
            self._rows.pop(trial.id, None)

    def note(self, text: str) -> None:
        """A sentence that the user should see."""
        self._say(text)

    def tick(self) -> None:
        """Redraws."""
        if self._live:
            self._live.update(self._render())

    def end(self) -> None:
        """Clears the display."""
        if self._live:
            self._live.stop()
            self._live = None

    def _about(self, trial: Trial | PretrainedTeacher) -> str:
        pair = f"{trial.teacher.model} -> " if trial.teacher else ""
        return f"{pair}{trial.model}, {self._labels[trial.id]}{_seed(trial)}"

    def _row(self, trials: Sequence[Trial | PretrainedTeacher]) -> _Row | None:
        return next((self._rows[trial.id] for trial in trials if trial.id in self._rows), None)

    def _left(self) -> str:
        elapsed = time.monotonic() - self._began
        if self._units_done < 1 or elapsed < 5:
            return ""
        seconds = (self._units - self._units_done) * elapsed / self._units_done
        return f", about {_duration(seconds)} left" if seconds >= 1 else ""

    def _render(self) -> Group:
        trainings = sum(left == 0 for left in self._work.values())
        table = Table.grid(padding=(0, 2))
        for _ in range(5):
            table.add_column(no_wrap=True)
        for row in {id(one): one for one in self._rows.values()}.values():
            bar = ProgressBar(total=row.trials[0].epochs, completed=row.done, width=16)
            rate = f"{row.rate:.0f} images/s" if row.rate else ""
            table.add_row(row.name, bar, row.epochs, rate, row.accuracies)
        return Group(f"{self.name}: {trainings} of {len(self._work)} trainings done{self._left()}", table)

    def _plain(self, text: str) -> None:
        if not self._live:
            self._say(text)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False)


def _seed(trial: Trial | PretrainedTeacher) -> str:
    return f", seed {trial.seed}" if isinstance(trial, Trial) else ", given weights"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def download_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error for the bytes of a download; what it gives is told the bytes so far and all."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
