"""A trial's folder and its files. A kill at any instant leaves the last checkpoint whole."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.trials.reader import WEIGHTS, TrialRecord, read_environment, read_trial
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import json_text, write_atomic, write_json, write_new
from kd_bench.utils.regular_files import BadFile, read_json_object, read_regular

Status = Literal["done", "failed", "missing"]

#: Number of checkpoints in the folder of an unfinished trial: the last, and one more in case the last is damaged.
KEPT_CHECKPOINTS = 2

#: Name of the folder of trained teachers, which all recipes of a results folder share.
TEACHERS = "teachers"

_CHECKPOINT = re.compile(r"epoch-(\d{6})-([0-9a-f]{16})\.pt")
_MID_EPOCH = re.compile(r"within-(\d{6})-\d{9}-[0-9a-f]{16}\.pt")


class TrialFolder:
    """``OUT/<recipe>/<trial id>/``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = path / WEIGHTS

    @property
    def id(self) -> str:
        """The trial's id."""
        return self.path.name

    def check_settings(self) -> None:
        """Checks that the folder is not damaged, and that the hash of its settings is its name.

        Raises:
            UserError: If a file is damaged, or ``trial.json`` was changed by hand.
        """
        self._read()

    def _read(self) -> TrialRecord:
        record = read_trial(self.path)
        if record.is_damaged:
            raise UserError(record.advice)
        return record

    def create(self, trial: Trial | PretrainedTeacher) -> None:
        """Creates the folder and writes the settings, if they do not exist yet.

        Raises:
            UserError: If the folder cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be created: {error.strerror}") from None
        if not (self.path / "trial.json").exists():
            write_json(self.path / "trial.json", trial.settings())

    def result(self) -> dict[str, Any] | None:
        """Returns the content of ``result.json``, or None if the trial is not finished.

        Raises:
            UserError: If the trial is damaged, or was changed by hand.
        """
        return self._read().result

    def status(self) -> Status:
        """Returns the status. A trial that is done but has lost its weights is missing.

        Raises:
            UserError: If the trial is damaged, or was changed by hand.
        """
        record = self._read()
        if record.verdict == "failed":
            return "failed"
        return "done" if record.verdict == "done" and record.has_weights else "missing"

    def read(self, name: str) -> dict[str, Any] | None:
        """Returns the content of one of the folder's JSON files, or None if it cannot be read or is damaged."""
        with suppress(BadFile):
            return read_json_object(self.path / name)
        return None

    def write_environment(self, environment: Mapping[str, Any]) -> dict[str, Any] | None:
        """Writes ``environment.json``. Keeps the environments from before a resume, and returns the last of these."""
        previous = read_environment(self.path)
        earlier = [*(previous.pop("earlier", None) or []), previous] if previous else []
        try:
            write_json(self.path / "environment.json", {**environment, "earlier": earlier})
        except ValueError:  # the earlier ones were changed by hand and have infinite numbers
            write_json(self.path / "environment.json", {**environment, "earlier": []})
        return previous or None

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes ``metrics.csv``, one row per epoch. Rewrites the whole file, so a kill leaves no duplicate rows."""
        self._write_table("metrics.csv", list(rows))

    def write_preparation(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes ``preparation.csv``, one row per epoch before the student's own, as ``write_metrics`` does."""
        self._write_table("preparation.csv", list(rows))

    def _write_table(self, name: str, rows: list[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        columns = dict.fromkeys(name for row in rows for name in row)  # columns may change with a resume
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path / name, text.getvalue())

    def write_checkpoint(self, epoch: int, content: bytes) -> None:
        """Writes the state after ``epoch`` epochs, those of a preparation included.

        The file name has the content's hash, to detect damage.
        """
        new = self._write_state(f"epoch-{epoch:06d}", content)
        kept_epochs = {
            epoch,
            *sorted({other for other, _ in self._checkpoints() if other < epoch})[1 - KEPT_CHECKPOINTS :],
        }
        for other, path in self._checkpoints():
            if other not in kept_epochs or (other == epoch and path != new):
                path.unlink(missing_ok=True)
        for path in new.parent.glob("within-*.pt"):  # of an epoch that is over
            path.unlink(missing_ok=True)

    def write_mid_epoch(self, epoch: int, step: int, content: bytes) -> None:
        """Writes the state after ``step`` steps of an epoch (from 0), and removes earlier states within an epoch."""
        new = self._write_state(f"within-{epoch:06d}-{step:09d}", content)
        for path in new.parent.glob("within-*.pt"):
            if path != new:
                path.unlink(missing_ok=True)

    def _write_state(self, name: str, content: bytes) -> Path:
        path = self.path / "checkpoint" / f"{name}-{_digest(content)}.pt"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, content)
        return path

    def read_mid_epoch(self, epoch: int) -> Iterable[tuple[int, bytes]]:
        """Yields epoch and content of the undamaged states within this epoch (from 0) and later ones, the last first.

        A training with short epochs does not write a checkpoint at the end of each. Therefore its last state may be
        within a later epoch than the one after its last checkpoint.
        """
        for path in sorted((self.path / "checkpoint").glob("within-*.pt"), reverse=True):
            match = _MID_EPOCH.fullmatch(path.name)
            if match is None or int(match[1]) < epoch:
                continue
            if (content := _read_state(path)) is not None:
                yield int(match[1]), content

    def read_checkpoints(self) -> Iterable[tuple[int, Path, bytes | None]]:
        """Yields epoch, file and content of each checkpoint, the last first. The content is None if it is damaged."""
        for epoch, path in self._checkpoints():
            yield epoch, path, _read_state(path)

    def has_checkpoint(self) -> bool:
        """Whether there is a state that a training may continue from."""
        return any((self.path / "checkpoint").glob("*-*.pt"))

    def epochs_done(self) -> int:
        """Returns the number of epochs of the last checkpoint; 0 without a checkpoint."""
        return max((epoch for epoch, _ in self._checkpoints()), default=0)

    def finish(self, result: Mapping[str, Any]) -> bool:
        """Writes ``result.json``, which makes the trial finished, and then removes the checkpoints.

        Returns:
            False if there is a result already, from a process that believed to hold the lease too. That result stays.
        """
        if not write_new(self.path / "result.json", json_text(result)):
            return False
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)
        return True

    def write_failure(self, reason: str) -> None:
        """Writes ``failure.json``, which says why the trial could not be trained. The next run tries again.

        If it cannot be written, perhaps because the disk is full, that is no error: it only informs.
        """
        with suppress(OSError):
            if self.path.is_dir():
                write_json(self.path / "failure.json", {"reason": reason})

    def remove_failure(self) -> None:
        """Removes ``failure.json``, and a result that has lost its weights, before another attempt."""
        (self.path / "failure.json").unlink(missing_ok=True)
        if not self.weights.exists():
            self.remove_result()

    def remove_result(self) -> None:
        """Removes ``result.json``, so that a failed trial is trained again."""
        (self.path / "result.json").unlink(missing_ok=True)

    def _checkpoints(self) -> list[tuple[int, Path]]:
        paths = sorted((self.path / "checkpoint").glob("epoch-*.pt"), reverse=True)
        return [(int(match[1]), path) for path in paths if (match := _CHECKPOINT.fullmatch(path.name))]


def _read_state(path: Path) -> bytes | None:
    """Returns the content of a checkpoint; None if it does not match the hash in the file's name."""
    with suppress(BadFile):
        content = read_regular(path, largest=None)
        if content is not None and path.name.endswith(f"-{_digest(content)}.pt"):
            return content
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
