"""Loggers that show the progress of a training: TensorBoard and Weights & Biases.

Results are read from the trial's folder alone. A logger that fails is reported and dropped, and the training continues.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kd_bench.config.trial import Trial
from kd_bench.trials.folder import TrialFolder
from kd_bench.utils.errors import first_line
from kd_bench.utils.files import write_atomic

Row = Mapping[str, float]

#: Keys of the result that are shown as the summary of a trial.
_SUMMARY = ("status", "reason", "top1_last", "top1_best", "best_epoch", "top5_last", "seconds", "parameters",
            "teacher_top1", "weights_sha256")  # fmt: skip


class TensorBoard:
    """Writes events into ``tensorboard/`` of the trial's folder. A resumed trial replaces the earlier events."""

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
        """Closes the file."""
        self._writer.close()


class WandB:
    """Writes a run of Weights & Biases, whose files are in ``wandb/`` of the trial's folder.

    A resumed trial continues its run, whose id is in ``wandb/run.txt``. A trial that is trained again gets a new run.
    wandb's variables set project, mode and server (``WANDB_PROJECT``, default kd-bench; ``WANDB_MODE=offline``).
    """

    def __init__(self, folder: TrialFolder, trial: Trial, history: Sequence[Row]) -> None:
        import wandb

        run_id = folder.path / "wandb" / "run.txt"
        run_id.parent.mkdir(exist_ok=True)
        if not history or not run_id.exists():
            write_atomic(run_id, f"{folder.id}-{secrets.token_hex(4)}")
        teacher = f"{trial.teacher.model} to " if trial.teacher else ""
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "kd-bench",
            group=folder.path.parent.name,
            name=f"{trial.method.title}, {teacher}{trial.model}, seed {trial.seed}",
            id=run_id.read_text(),
            resume="allow",
            config=trial.settings(),
            dir=str(folder.path),
            reinit="create_new",  # the members of a cohort have one run each in the same process
            settings=wandb.Settings(console="off"),
        )
        for row in history:
            if row["epoch"] >= self._run.starting_step:  # wandb refuses earlier steps
                self.row(row)

    def row(self, row: Row) -> None:
        """Adds a step, which is an epoch."""
        self._run.log(dict(row), step=int(row["epoch"]))

    def close(self, result: Mapping[str, Any]) -> None:
        """Ends the run, with exit code 1 if the trial has failed."""
        self._run.summary.update({name: result[name] for name in _SUMMARY if result.get(name) is not None})
        self._run.finish(exit_code=0 if result["status"] == "done" else 1)


#: Logger by name, which is also the name of its command line option, its package and its extra.
LOGGERS: dict[str, type[TensorBoard | WandB]] = {"tensorboard": TensorBoard, "wandb": WandB}


class Loggers:
    """All loggers of one trial. A logger that raises an error is dropped with a warning.

    Args:
        names: Keys of ``LOGGERS``.
        folder: The trial's folder.
        warn: Called with a sentence for each logger that fails.
    """

    def __init__(self, names: Sequence[str], folder: TrialFolder, warn: Callable[[str], None]) -> None:
        self._names, self._folder, self._warn = names, folder, warn
        self._open: dict[str, TensorBoard | WandB] = {}

    def open(self, trial: Trial, history: Sequence[Row]) -> None:
        """Opens the loggers and logs ``history``, the epochs that were finished before a resume."""
        for name in self._names:
            with self._guarded(name):
                self._open[name] = LOGGERS[name](self._folder, trial, history)

    def row(self, row: Row) -> None:
        """Logs an epoch."""
        for name in list(self._open):
            with self._guarded(name):
                self._open[name].row(row)

    def close(self, result: Mapping[str, Any]) -> None:
        """Logs the result."""
        for name in list(self._open):
            with self._guarded(name):
                self._open[name].close(result)
        self._open.clear()

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            self._warn(f"--{name}: {self._folder.path.name} continues without it ({first_line(error)})")
