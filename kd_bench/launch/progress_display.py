"""Shows the progress of a run on standard error: a live table on a terminal, else plain lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table

from kd_bench.config.network_names import short_name
from kd_bench.config.teacher_seeds import teacher_suffix, teachers_of_several_seeds
from kd_bench.config.trial import Trial
from kd_bench.launch.cohort_task import AnyTrial
from kd_bench.utils.plugins import is_file_name
from kd_bench.utils.text import count

#: Least seconds between two plain lines about the same cohort. Later lines have more between them.
PLAIN_SECONDS = 15.0

#: Seconds without a plain line after which one is printed within an epoch.
LONG_EPOCH_SECONDS = 600.0

#: Columns of a terminal that has room for a bar and a cohort's images per second.
_WIDE = 110


@dataclass
class _Row:
    """A cohort in training."""

    trials: Sequence[AnyTrial]
    labels: dict[str, str]
    last_printed: float
    several: Container[str] = ()  # teachers whose seed is shown
    epochs_done: float = 0.0
    rate: float | None = None
    top1: dict[str, float] = field(default_factory=dict)
    first_report: tuple[float, float] | None = None  # time, and epochs that were done

    @property
    def name(self) -> str:
        first = self.trials[0]
        return f"{_pair(first, sorted({trial.model for trial in self.trials}), self.several)}{_seed(first)}"

    @property
    def epochs(self) -> int:
        return self.trials[0].epochs

    @property
    def preparation_epochs(self) -> int:
        return max(trial.preparation_epochs for trial in self.trials)

    @property
    def position(self) -> tuple[float, int]:
        """The finished epochs and their number, those of the preparation as long as that is under way."""
        before = self.preparation_epochs
        return (self.epochs_done + before, before) if self.epochs_done < 0 else (self.epochs_done, self.epochs)

    @property
    def speed(self) -> str:
        return f"{self.rate:.0f} images/s" if self.rate else ""

    @property
    def names(self) -> tuple[str, str]:
        """The students, and a shorter text."""
        return ", ".join(self.labels.values()), count(len(self.labels), "student")

    @property
    def accuracies(self) -> tuple[str, ...]:
        """The accuracies after the last epoch, and shorter texts; before the first, the students."""
        if not self.top1:
            return *self.names, ""
        labelled = ", ".join(f"{self.labels[trial]} {top1:.1f}" for trial, top1 in self.top1.items())
        low, high = f"{min(self.top1.values()):.1f}", f"{max(self.top1.values()):.1f}"
        span = f"{low} %" if len(self.top1) == 1 else f"{low}-{high} %"
        return f"{labelled} %", f"{count(len(self.top1), 'student')} {span}", span

    def report(self, epochs_done: float) -> None:
        """Takes note of the epochs that are done; their number is negative in a preparation."""
        self.epochs_done = epochs_done
        if self.first_report is None:
            self.first_report = time.monotonic(), epochs_done

    def remove(self, trial: AnyTrial) -> None:
        """Removes a trial that has failed."""
        self.trials = [member for member in self.trials if member.id != trial.id]
        self.top1.pop(trial.id, None)
        del self.labels[trial.id]

    def seconds_left(self) -> float | None:
        """Returns the seconds that the cohort needs at its speed so far; None if that is not known yet."""
        if self.first_report is None:
            return None
        since, epochs_before = self.first_report
        seconds, epochs = time.monotonic() - since, self.epochs_done - epochs_before
        return (self.epochs - self.epochs_done) * seconds / epochs if seconds >= 2 and epochs > 0 else None


class ProgressDisplay:
    """Shows the progress of a recipe's run on a console, by default on standard error."""

    def __init__(self, name: str, console: Console | None = None) -> None:
        self.name = name
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._rows: dict[str, _Row] = {}
        self._labels: dict[str, str] = {}
        self._several: set[str] = set()
        self._epochs_left: dict[str, float] = {}
        self._epochs_total = self._epochs_done = 0.0
        self._started = time.monotonic()

    def start(self, labels: Mapping[str, str], teachers: Sequence[AnyTrial], missing: Sequence[AnyTrial]) -> None:
        """Prints which teachers and trials are missing, and starts the live table on a terminal.

        ``labels`` is the table row of each trial of the recipe, by the trial's id. Teachers are trained or imported.
        """
        self._labels = {**labels, **{trial.id: "teacher" for trial in teachers}}
        self._several = teachers_of_several_seeds(missing)
        self._epochs_left = {trial.id: trial.preparation_epochs + trial.epochs for trial in [*teachers, *missing]}
        self._epochs_total = float(sum(self._epochs_left.values()))
        if not self._epochs_left:
            self.message(f"{self.name}: all is done ({count(len(labels), 'trial')}); nothing to train")
            return
        trained = sum(isinstance(teacher, Trial) for teacher in teachers)
        imported = f", to read: {count(len(teachers) - trained, 'teacher')}" if trained < len(teachers) else ""
        counts = {"trial": len(missing), "teacher": trained}
        work = " and ".join(count(number, noun) for noun, number in counts.items() if number) or "nothing"
        self.message(f"{self.name}: to train: {work}{imported}")
        if self.console.is_terminal and not self.console.is_dumb_terminal:  # on which rich shows no live table
            self._live = Live(self._render(), console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def cohort_started(self, trials: Sequence[AnyTrial], epochs: int = 0) -> None:
        """Shows a worker that has started to train these trials, or goes on after ``epochs``, preparation included."""
        if not trials:
            return
        row = self._row(trials)
        self._rows |= {trial.id: row for trial in trials}
        verb = "started"
        if epochs:
            row.report(float(epochs - row.preparation_epochs))
            verb = f"resumed after {'the preparation' if not row.epochs_done else f'epoch {row.position[0]:.0f}'}"
            verb += " of the preparation" if row.epochs_done < 0 else ""
        for trial in trials if epochs else ():
            self._leave_out_earlier_work(trial, trial.preparation_epochs + trial.epochs - epochs)
        self._print_plain(self._fitted(row.name, [f": {names}: {verb}" for names in row.names]))

    def describe(self, trials: Sequence[AnyTrial]) -> str:
        """Returns the networks, the seed and the rows of a cohort."""
        row = self._row(trials)
        return f"{row.name}: {row.names[0]}"

    def _row(self, trials: Sequence[AnyTrial]) -> _Row:
        return _Row(trials, {trial.id: self._label(trial) for trial in trials}, time.monotonic(), self._several)

    def _leave_out_earlier_work(self, trial: AnyTrial, left: float) -> None:
        """Counts only the epochs that are left for this run, since those of an earlier run took no time of this one."""
        if left < self._epochs_left.get(trial.id, 0):
            self._epochs_total -= self._epochs_left[trial.id] - left
            self._epochs_left[trial.id] = left

    def cohort_resumed(self, trials: Sequence[AnyTrial], event: Mapping[str, Any]) -> None:
        """Takes note of the step at which a cohort goes on within an epoch, from a worker's ``resumed`` event."""
        position = _position(event)
        for trial in trials:
            if trial.id in self._rows:
                self._rows[trial.id].first_report = time.monotonic(), position
                self._leave_out_earlier_work(trial, trial.epochs - position)

    def cohort_progress(self, trials: Sequence[AnyTrial], event: Mapping[str, Any]) -> None:
        """Shows the position of a cohort in its epoch, from a worker's ``progress`` event."""
        row = next((self._rows[trial.id] for trial in trials if trial.id in self._rows), None)
        if row is not None:
            position = _position(event)
            row.report(position)
            row.rate = event["rate"]
            for trial in row.trials if event["step"] < event["steps"] else ():  # else the epoch is about to be counted
                self._count_epochs(trial, trial.epochs - position)
            if time.monotonic() - row.last_printed > LONG_EPOCH_SECONDS:
                self._print_row(row, f"{row.position[0]:.2f}")

    def preparation_epoch_finished(self, trial: AnyTrial, epoch: int) -> None:
        """Shows the end of an epoch (from 1) of a trial's preparation."""
        row = self._rows.get(trial.id)
        if row is not None:
            row.report(float(epoch - trial.preparation_epochs))
            self._count_epochs(trial, trial.preparation_epochs - epoch + trial.epochs)
            if row.epochs_done < 0 and time.monotonic() - row.last_printed > PLAIN_SECONDS:
                self._print_row(row, str(epoch))

    def epoch_finished(self, trial: AnyTrial, epoch: int, top1: float) -> None:
        """Shows a trial's accuracy, in percent, after an epoch (from 1)."""
        row = self._rows.get(trial.id)
        if row is None:
            return
        row.report(float(epoch))
        row.top1[trial.id] = top1
        self._count_epochs(trial, trial.epochs - epoch)
        complete = all(member.id in row.top1 for member in row.trials)
        # A log of days should not have thousands of lines: after an hour, there are 90 seconds between two of them.
        interval = max(PLAIN_SECONDS, min(LONG_EPOCH_SECONDS, (time.monotonic() - self._started) / 40))
        due = epoch < trial.epochs and time.monotonic() - row.last_printed > interval
        if complete and due and trial is row.trials[-1]:
            self._print_row(row, str(epoch))

    def _count_epochs(self, trial: AnyTrial, left: float) -> None:
        if left < self._epochs_left.get(trial.id, 0):  # a member of a cohort may be ahead of the others
            self._epochs_done += self._epochs_left[trial.id] - left
            self._epochs_left[trial.id] = left

    def trial_finished(self, trial: AnyTrial, top1: float | None, reason: str | None) -> None:
        """Prints a trial's accuracy, or the reason why it has failed."""
        if reason is None:
            self._count_epochs(trial, 0)  # of a teacher from a file, of which no epoch was reported
            self._print_plain(f"{self._title(trial)}: done, {top1:.2f} %{self._time_left([trial])}")
        else:
            self._epochs_total -= self._epochs_left.pop(trial.id, 0)
            row = self._rows.get(trial.id)
            if row is not None and len(row.trials) > 1:  # the others go on without it
                del self._rows[trial.id]
                row.remove(trial)
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
            try:
                self._live.stop()
            finally:  # another Ctrl-C must not leave a terminal without its cursor
                self.console.show_cursor()
            self._live = None

    def _title(self, trial: AnyTrial) -> str:
        return f"{_pair(trial, [trial.model], self._several)}, {self._label(trial)}{_seed(trial)}"

    def _label(self, trial: AnyTrial) -> str:
        return self._labels.get(trial.id, "teacher")  # one that was there at the start of the run, and was removed

    def _time_left(self, trials: Sequence[AnyTrial] | None = None) -> str:
        """Returns the time that the run needs; in a line about trials, "in all" says that it is not only theirs."""
        elapsed = time.monotonic() - self._started
        if self._epochs_done < 0.1 or elapsed < 5:
            return ""
        seconds = (self._epochs_total - self._epochs_done) * elapsed / self._epochs_done
        others = self._epochs_left.keys() - {trial.id for trial in trials or ()}
        in_all = " in all" if trials is not None and any(self._epochs_left[name] for name in others) else ""
        return f", {_duration(seconds)} left{in_all}" if seconds >= 1 else ""

    def _print_row(self, row: _Row, epoch: str) -> None:
        row.last_printed = time.monotonic()
        stage = "preparation, " if row.epochs_done < 0 else ""
        start, left = f": {stage}epoch {epoch}/{row.position[1]}", self._time_left(row.trials)
        details = [f"{row.accuracies[0]}, {row.speed}", *row.accuracies] if row.speed else row.accuracies
        self._print_plain(self._fitted(row.name, [f"{start}{text and f', {text}'}{left}" for text in details]))

    def _fitted(self, name: str, ends: Sequence[str]) -> str:
        """Returns the name with the first end that fits on a line; if none does, the name is cut."""
        width = self.console.width
        end = next((end for end in ends if len(name) + len(end) <= width), ends[-1])
        return f"{_cut(name, width - len(end))}{end}"

    def _render(self) -> Group:
        """Returns the live table: a line for the run, and a line for each cohort, as wide as the terminal."""
        done = sum(left == 0 for left in self._epochs_left.values())
        rows = list({id(row): row for row in self._rows.values()}.values())
        wide = self.console.width >= _WIDE
        epochs = [
            f"{'before ' if row.epochs_done < 0 else ''}{int(done)}/{of}" for row in rows for done, of in [row.position]
        ]
        seconds = [row.seconds_left() or 0.0 for row in rows]
        times = [f"{_duration(left)} left" if left >= 1 else "" for left in seconds]
        speeds = [row.speed if wide else "" for row in rows]
        table = Table.grid(padding=(0, 2))
        for _ in range(6):
            table.add_column(no_wrap=True)
        bar = 16 if wide else 0
        # Two columns of spaces stand between two columns of the table, also if one of the columns is empty.
        taken = bar + 10 + sum(max(map(len, column), default=0) for column in (epochs, times, speeds))
        shortest = max((len(row.accuracies[-1]) for row in rows), default=0)
        names = [_cut(row.name, self.console.width - taken - shortest) for row in rows]
        width = self.console.width - taken - max(map(len, names), default=0)
        for row, name, epoch, time_left, speed in zip(rows, names, epochs, times, speeds, strict=True):
            text = next((text for text in row.accuracies if len(text) <= width), row.accuracies[-1])
            before = row.preparation_epochs
            progress: ProgressBar | str = ""
            if wide:
                progress = ProgressBar(total=row.epochs + before, completed=row.epochs_done + before, width=bar)
            table.add_row(name, epoch, text, time_left, speed, progress)
        return Group(f"{self.name}: {done} of {len(self._epochs_left)} trainings done{self._time_left()}", table)

    def _print_plain(self, text: str) -> None:
        if not self._live:
            self.message(text)


def _position(event: Mapping[str, Any]) -> float:
    """Returns the epochs before the step that a worker's event names."""
    return float(event["epoch"]) + event["step"] / event["steps"]


def _pair(trial: AnyTrial, students: Sequence[str], several: Container[str]) -> str:
    """Returns the networks, with the seed of a teacher that is one of ``several``."""
    names = ", ".join(map(_short, students))
    return f"{_short(trial.teacher.model)}{teacher_suffix(trial, several)} -> {names}" if trial.teacher else names


def _short(network: str) -> str:
    """Returns the name of a network without what the reader can do without."""
    return network.rpartition(":")[2] if is_file_name(network) else short_name(network)


def _cut(text: str, width: int) -> str:
    """Returns a text of at most ``width`` characters, or of 20, without its middle."""
    width = max(width, 20)
    return text if len(text) <= width else f"{text[: width - 11]}...{text[-8:]}"


def _seed(trial: AnyTrial) -> str:
    return f", seed {trial.seed}" if isinstance(trial, Trial) else ", given weights"


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
