"""Loggers that show a training as it goes: TensorBoard and Weights & Biases.

They are for people to look at. Results are read from the trial's folder alone, so a logger that fails is told and left
out, and the training goes on.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from kd_bench.config.trial import Trial
from kd_bench.trials.folder import TrialFolder
from kd_bench.utils.errors import first_line
from kd_bench.utils.files import write_atomic

Row = Mapping[str, float]

#: Of the result, what a logger shows of a trial as a whole.
_SUMMARY = ("status", "reason", "top1_last", "top1_best", "best_epoch", "top5_last", "seconds", "parameters",
            "teacher_top1", "weights_sha256")  # fmt: skip


class Logger(Protocol):
    """Shows one trial."""

    def row(self, row: Row) -> None:
        """Takes the metrics of an epoch."""

    def close(self, result: Mapping[str, Any]) -> None:
        """Takes the result of the trial, which is over."""


class TensorBoard:
    """Events in ``tensorboard/`` of the trial's folder. A start writes all epochs so far, in place of former events.

    Args:
        folder: The trial's.
        trial: Its settings.
        history: A row for each epoch that was trained before.
    """

    def __init__(self, folder: TrialFolder, trial: Trial, history: Sequence[Row]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=0)
        for row in history:
            self.row(row)

    def row(self, row: Row) -> None:
        """Adds a point to each curve."""
        for name in row.keys() - {"epoch"}:
            self._writer.add_scalar(name, row[name], row["epoch"])
        self._writer.flush()

    def close(self, result: Mapping[str, Any]) -> None:
        """Ends the file."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, which keeps its files in ``wandb/`` of the trial's folder.

    A trial that is resumed goes on with its run, whose name is kept there; trained anew it has a new one. Project, mode
    and server are wandb's own variables to say (``WANDB_PROJECT``, by default kd-bench; ``WANDB_MODE=offline``).

    Args:
        folder: The trial's.
        trial: Its settings, the run's configuration.
        history: A row for each epoch that was trained before; those that the run lacks are added.
    """

    def __init__(self, folder: TrialFolder, trial: Trial, history: Sequence[Row]) -> None:
        import wandb

        place = folder.path / "wandb"
        place.mkdir(exist_ok=True)
        kept = place / "run.txt"
        if not history or not kept.exists():
            write_atomic(kept, f"{folder.id}-{secrets.token_hex(4)}")
        teacher = f"{trial.teacher.model} to " if trial.teacher else ""
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "kd-bench",
            group=folder.path.parent.name,
            name=f"{trial.method.name}, {teacher}{trial.model}, seed {trial.seed}",
            id=kept.read_text(),
            resume="allow",
            config=trial.settings(),
            dir=str(folder.path),
            reinit="create_new",  # members of a cohort have one each, in one process
            settings=wandb.Settings(console="off"),
        )
        for row in history:
            if row["epoch"] >= self._run.starting_step:  # a run refuses what it has
                self.row(row)

    def row(self, row: Row) -> None:
        """Adds a step, which is an epoch."""
        self._run.log(dict(row), step=int(row["epoch"]))

    def close(self, result: Mapping[str, Any]) -> None:
        """Ends the run, as failed where the trial is."""
        self._run.summary.update({name: result[name] for name in _SUMMARY if result.get(name) is not None})
        self._run.finish(exit_code=0 if result["status"] == "done" else 1)


#: By the name of the command line's option, which is that of the package and of the extra, too.
LOGGERS: dict[str, Callable[[TrialFolder, Trial, Sequence[Row]], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
}


class Loggers:
    """Those of one trial. Errors of theirs, whatever they are, are told and end nothing but the logger.

    Args:
        names: Of ``LOGGERS``.
        folder: The trial's.
        note: Is told what is amiss, in a sentence.
    """

    def __init__(self, names: Sequence[str], folder: TrialFolder, note: Callable[[str], None]) -> None:
        self._names, self._folder, self._note = names, folder, note
        self._open: dict[str, Logger] = {}

    def begin(self, trial: Trial, history: Sequence[Row]) -> None:
        """Opens them, and shows the epochs before."""
        for name in self._names:
            with self._guarded(name):
                self._open[name] = LOGGERS[name](self._folder, trial, history)

    def row(self, row: Row) -> None:
        """Shows an epoch."""
        for name, logger in list(self._open.items()):
            with self._guarded(name):
                logger.row(row)

    def close(self, result: Mapping[str, Any]) -> None:
        """Shows the result."""
        for name, logger in list(self._open.items()):
            with self._guarded(name):
                logger.close(result)
        self._open.clear()

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            self._note(f"--{name}: {self._folder.path.name} goes on without it ({first_line(error)})")
